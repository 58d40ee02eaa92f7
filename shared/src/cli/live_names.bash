
# Pools and backends are those of the running daemon, which may be named by -c or --socket.
_load_balancer_live() {
    _load_balancer "$@"
    local word value="" command="" daemon=() words=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ -n "$value" ]]; then
            case "$value" in
                -c|--conf|--socket) daemon+=("$value" "${word/#\~/$HOME}") ;;
            esac
            value=""
            continue
        fi
        case "$word" in
            -c|--conf|--socket|--timeout|--weight|--max-requests) value="$word" ;;
            -*) ;;
            drain|undrain|enable|disable|weight|add|remove)
                if [[ -z "$command" ]]; then command="$word"; else words+=("$word"); fi ;;
            *) if [[ -n "$command" ]]; then words+=("$word"); fi ;;
        esac
    done
    local current="${COMP_WORDS[COMP_CWORD]}"
    if [[ -z "$command" || -n "$value" || "$current" == -* ]] || ((${#words[@]} > 1)); then
        return 0
    fi
    COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" names "${daemon[@]}" "${words[@]}" 2>/dev/null)" -- "$current"))
}
# An address is one word.
COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}
complete -F _load_balancer_live -o nosort -o bashdefault -o default load_balancer

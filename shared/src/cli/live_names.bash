
# Pools and backends are those of the running daemon.
_load_balancer_live() {
    _load_balancer "$@"
    local word position=0 words=()
    for ((word = 1; word < COMP_CWORD; word++)); do
        if ((position > 0)); then
            words+=("${COMP_WORDS[word]}")
        fi
        case "${COMP_WORDS[word]}" in
            drain|undrain|enable|disable|weight|add|remove) position=1 ;;
        esac
    done
    local current="${COMP_WORDS[COMP_CWORD]}"
    if ((position == 0)) || [[ "$current" == -* ]] || ((${#words[@]} > 1)); then
        return 0
    fi
    COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" names "${words[@]}" 2>/dev/null)" -- "$current"))
}
# An address is one word.
COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}
complete -F _load_balancer_live -o nosort -o bashdefault -o default load_balancer

#!/bin/sh
# Installs what is missing of the named groups, from Debian's packages when that is possible, and says in one line what to
# do otherwise. Does nothing, and asks nobody, when everything is there.
#
#   deploy/setup.sh build           a C compiler and cmake, which Pingora's build needs
#   deploy/setup.sh build test      also the real programs that the tests talk to
#   deploy/setup.sh build bench     also the peers of the benchmark
set -eu

missing=""

# need PROGRAM PACKAGE: remembers PACKAGE when PROGRAM cannot be found.
need() {
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}

command -v cargo >/dev/null 2>&1 || [ -x "$HOME/.cargo/bin/cargo" ] || {
    echo "error: Rust is missing: see https://rustup.rs" >&2
    exit 1
}
for group in "$@"; do
    case "$group" in
        build) need cc gcc; need cmake cmake ;;
        test)
            need curl curl; need nginx nginx-light; need wrk wrk
            need promtool prometheus; need prometheus prometheus; need openssl openssl; need ip iproute2
            ;;
        bench) need nginx nginx-light; need haproxy haproxy; need wrk wrk; need python3 python3 ;;
        *) echo "error: $0 knows build, test and bench, not '$group'" >&2; exit 2 ;;
    esac
done

[ -n "$missing" ] || exit 0
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: please install: $missing" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root="sudo"
else
    echo "error: please run as root: apt-get install -y $missing" >&2
    exit 1
fi

echo "installing from Debian's packages: $missing"
# A package's own service must not start here: the tests start the programs themselves, on ports of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod +x "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi
$as_root env DEBIAN_FRONTEND=noninteractive sh -c "
    apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }"

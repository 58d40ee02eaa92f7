#!/bin/sh
# Installs the missing programs of the named groups from Debian's packages. Where that is not possible, prints in one
# line what to install. Changes nothing and prompts for nothing if all programs are present.
#
#   deploy/setup.sh build           a C compiler, cmake and make, to build Pingora and jemalloc
#   deploy/setup.sh build test      also the programs that the tests run
#   deploy/setup.sh build audit     also the program that fetches the database of vulnerabilities
#   deploy/setup.sh build bench     also the programs that the benchmark compares with
set -eu

missing=""

# need PROGRAM PACKAGE: adds PACKAGE to the missing ones if PROGRAM is not found.
need() {
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}

command -v cargo >/dev/null 2>&1 || [ -x "$HOME/.cargo/bin/cargo" ] || {
    echo "error: cargo is missing: install Rust from https://rustup.rs" >&2
    exit 1
}
for group in "$@"; do
    case "$group" in
        build) need cc gcc; need cmake cmake; need make make ;;
        test)
            need curl curl; need nginx nginx-light; need wrk wrk
            need promtool prometheus; need prometheus prometheus; need openssl openssl; need ip iproute2
            need man man-db; need unshare util-linux; need setpriv util-linux
            ;;
        audit) need git git ;;
        bench) need nginx nginx-light; need haproxy haproxy; need wrk wrk; need python3 python3 ;;
        *) echo "error: unknown group '$group': use build, test, audit or bench" >&2; exit 2 ;;
    esac
done

[ -n "$missing" ] || exit 0
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: programs are missing: install the packages $missing" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root="sudo"
else
    echo "error: programs are missing: run as root: apt-get install -y $missing" >&2
    exit 1
fi

echo "installing from Debian's packages: $missing"
# Keeps the services of the packages from starting: the tests start the programs themselves, on their own ports.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod +x "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi
$as_root env DEBIAN_FRONTEND=noninteractive sh -c "
    apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }"

#!/bin/sh
# Checks the dependencies: licences, duplicates, sources, yanked versions and known vulnerabilities. `deny.toml` has the
# rules, and each exception with its reason. Fails on a finding. Without the advisory database it says so and checks the
# rest.
#
# cargo-deny and cargo-audit are built into `target/audit` if they are missing, which takes some minutes.
set -eu

cd "$(dirname "$0")/.."
cargo="${CARGO:-cargo}"
target="${CARGO_TARGET_DIR:-target}"
mkdir -p "$target/audit"
tools="$(cd "$target/audit" && pwd)"
database="https://github.com/RustSec/advisory-db"
PATH="$PATH:$tools/bin"
status=0

# need PROGRAM: builds the program if it is missing.
need() {
    command -v "$1" >/dev/null 2>&1 || CARGO_TARGET_DIR="$tools/build" \
        "$cargo" install --quiet --locked --root "$tools" "$1"
}

# run PROGRAM ARGUMENTS: runs a check, and remembers a failure.
run() {
    echo "audit: $*"
    "$@" || status=1
}

# Checks for yanked versions without the database, with a list of advisories that has none for a crate that exists.
check_yanked() {
    empty="$tools/advisories"
    # cargo-deny derives this name from the address of the database.
    list="$empty/advisory-db-3157b0e258782691"
    mkdir -p "$list/crates/none"
    printf '```toml\n[advisory]\nid = "RUSTSEC-2000-0001"\npackage = "none"\ndate = "2000-01-01"\n\n[versions]\npatched = []\n```\n\n# None\n\nNone.\n' \
        >"$list/crates/none/RUSTSEC-2000-0001.md"
    if [ ! -d "$list/.git" ]; then
        git -C "$list" init --quiet
        git -C "$list" add .
        git -C "$list" -c user.name=audit -c user.email=audit@localhost commit --quiet --message "No advisories"
    fi
    git -C "$list" rev-parse HEAD >"$list/.git/FETCH_HEAD"
    sed "s|^\[advisories\]|&\ndb-path = \"$empty\"|" deny.toml >"$empty/deny.toml"
    # This reads the registry again, by which cargo-deny finds what was yanked since.
    "$cargo" update --quiet --dry-run || echo "audit: the registry cannot be reached: versions yanked lately are not found"
    run cargo-deny --offline --config "$empty/deny.toml" check advisories
}

need cargo-deny
run cargo-deny check licenses bans sources
if GIT_TERMINAL_PROMPT=0 timeout 30 git ls-remote --quiet "$database" HEAD >/dev/null 2>&1; then
    need cargo-audit
    run cargo-deny check advisories
    run cargo-audit audit --deny yanked
else
    check_yanked
    echo "audit: NOT CHECKED: known vulnerabilities, because $database cannot be reached"
fi
[ "$status" -eq 0 ] && echo "audit: no finding" || echo "audit: there are findings" >&2
exit "$status"

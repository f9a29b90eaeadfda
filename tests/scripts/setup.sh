#!/usr/bin/env bash
# Installs what building, the demo and the tests need, on Debian and Ubuntu. Says nothing when everything is there.
# With --lints it also adds rustfmt and clippy to a Rust without them, and the C++ compiler that fuzzing needs.
#
# Rust itself is left to the user: see https://rustup.rs. Debian makes a database cluster and starts it when Postgres
# is installed; here it is told not to, since Coppice makes its own.
set -euo pipefail
# Where rustup puts cargo, for shells that do not know it yet.
export PATH="$PATH:$HOME/.cargo/bin"

has() { command -v "$1" >/dev/null 2>&1; }
has_postgres() { has postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }
has_libc_headers() { echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1; }

fail() {
    echo "setup: $*" >&2
    exit 1
}

missing=()
has make || missing+=(make)
has cc || missing+=(gcc)
{ has cc && has_libc_headers; } || missing+=(libc6-dev)
if [ "${1:-}" = --lints ]; then has c++ || missing+=(g++); fi
has fusermount3 || missing+=(fuse3)
# The tests send signals with the program, not with the shell's own command.
type -P kill >/dev/null || missing+=(procps)
has psql || missing+=(postgresql-client)
# Last, as it is installed in its own way.
has_postgres || missing+=(postgresql)

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi

apt_install() {
    echo "setup: installing $*"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 \
        apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        fail "apt-get could not install: $*"
    }
}

# Installs Postgres without a cluster of its own; the setting that does it is put back as it was.
settings=/etc/postgresql-common/createcluster.conf
install_postgres() {
    apt_install postgresql-common
    "${as_root[@]}" cp -p "$settings" "$settings.before"
    echo 'create_main_cluster = false' | "${as_root[@]}" tee -a "$settings" >/dev/null
    trap '"${as_root[@]}" mv "$settings.before" "$settings"; rm -f "$log"' EXIT
    apt_install postgresql
}

if [ ${#missing[@]} -gt 0 ]; then
    has apt-get || fail "missing: ${missing[*]} (Debian's names); install them with this system's package manager"
    if [ "$(id -u)" != 0 ] && ! has sudo; then
        fail "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}"
    fi
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    "${as_root[@]}" apt-get update -q >"$log" 2>&1 || {
        cat "$log" >&2
        fail "apt-get update failed"
    }
    mapfile -t plain < <(printf '%s\n' "${missing[@]}" | grep -vx postgresql || true)
    if [ ${#plain[@]} -gt 0 ]; then apt_install "${plain[@]}"; fi
    has_postgres || install_postgres
fi

has cargo || fail "cargo is not installed: get Rust from https://rustup.rs"
[ "${1:-}" = --lints ] || exit 0
for component in fmt:rustfmt clippy:clippy; do
    cargo "${component%:*}" --version >/dev/null 2>&1 && continue
    has rustup || fail "cargo ${component%:*} is not installed: add it to this Rust"
    rustup component add "${component#*:}"
done

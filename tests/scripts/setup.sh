#!/usr/bin/env bash
# Installs what building, the demo and the tests need, on Debian and Ubuntu. Says nothing when
# everything is there. With --lints it also adds rustfmt and clippy to a Rust without them, the C++
# compiler that fuzzing needs, pg_cron, whose jobs must not run on branches, and what those clients
# need that `make test` runs. With --clients it adds what all clients need; one that cannot have it
# is skipped. With --bench it adds what Coppice is compared with; a system that does not have it
# skips the comparison.
#
# Rust itself is left to the user: see https://rustup.rs. Debian makes a database cluster and starts
# it when Postgres is installed; here it is told not to, since Coppice makes its own.
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

lints=false
bench=false
clients=false
for option in "$@"; do
    case $option in
    --lints) lints=true ;;
    --bench) bench=true ;;
    --clients) clients=true ;;
    *) fail "unknown option $option" ;;
    esac
done

missing=()
has make || missing+=(make)
has cc || missing+=(gcc)
{ has cc && has_libc_headers; } || missing+=(libc6-dev)
if $lints; then has c++ || missing+=(g++); fi
has fusermount3 || missing+=(fuse3)
# The tests send signals with the program, not with the shell's own command.
type -P kill >/dev/null || missing+=(procps)
has psql || missing+=(postgresql-client)
# A test verifies the server with Python's TLS.
has python3 || missing+=(python3)
peers=()
if $bench; then
    # Debian puts them where only root looks.
    PATH="$PATH:/usr/sbin:/sbin"
    has mkfs.btrfs || peers+=(btrfs-progs)
    has mkfs.xfs || peers+=(xfsprogs)
    has pgbouncer || peers+=(pgbouncer)
    if [ ${#peers[@]} -gt 0 ] && ! has apt-get; then
        echo "setup: missing: ${peers[*]} (Debian's names); what is compared with them is skipped" >&2
        peers=()
    fi
    missing+=("${peers[@]}")
fi
# Last, as it is installed in its own way.
has_postgres || missing+=(postgresql)

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
can_install() { has apt-get && { [ "$(id -u)" = 0 ] || has sudo; }; }

apt_install() {
    echo "setup: installing $*"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 \
        apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        fail "apt-get could not install: $*"
    }
}

# Puts back what the installations below change for a while.
settings=/etc/postgresql-common/createcluster.conf
policy=/usr/sbin/policy-rc.d
changed_settings=false
made_policy=false
clean_up() {
    if $changed_settings; then "${as_root[@]}" mv "$settings.before" "$settings"; fi
    if $made_policy; then "${as_root[@]}" rm -f "$policy"; fi
    rm -f "$log"
}

# Installs Postgres without a cluster of its own.
install_postgres() {
    apt_install postgresql-common
    "${as_root[@]}" cp -p "$settings" "$settings.before"
    changed_settings=true
    echo 'create_main_cluster = false' | "${as_root[@]}" tee -a "$settings" >/dev/null
    apt_install postgresql
}

# Prints the majors of Debian's Postgres that are here without pg_cron.
without_cron() {
    for server in /usr/lib/postgresql/*/bin/postgres; do
        major=${server#/usr/lib/postgresql/}
        major=${major%%/*}
        if [ -e "$server" ] && [ ! -e "/usr/lib/postgresql/$major/lib/pg_cron.so" ]; then
            echo "$major"
        fi
    done
}

# Installs PgBouncer without starting its service, now or with the machine.
install_pgbouncer() {
    if [ ! -e "$policy" ]; then
        made_policy=true
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi
    apt_install pgbouncer
    if has systemctl; then "${as_root[@]}" systemctl --quiet disable pgbouncer >>"$log" 2>&1 || true; fi
}

# Prints the packages that clients need and that are missing: of all clients, or of those that
# `make test` runs.
without_clients() {
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    perl -MDBD::Pg -e 1 2>/dev/null || echo libdbd-pg-perl
    $clients || return 0
    { has node && has npm; } || echo npm
    php -r 'exit((int) !extension_loaded("pdo_pgsql"));' 2>/dev/null || echo php-cli php-pgsql
    ruby -rpg -e 1 2>/dev/null || echo ruby ruby-pg
    ruby -ractive_record -e 1 2>/dev/null || echo ruby-activerecord
    has javac || echo default-jdk-headless
    [ -e /usr/share/java/postgresql.jar ] || echo libpostgresql-jdbc-java
}

# Makes the log that apt_install writes, and refreshes the list of packages.
begin_apt() {
    log=$(mktemp)
    trap clean_up EXIT
    "${as_root[@]}" apt-get update -q >"$log" 2>&1 || {
        cat "$log" >&2
        fail "apt-get update failed"
    }
}

if [ ${#missing[@]} -gt 0 ]; then
    has apt-get ||
        fail "missing: ${missing[*]} (Debian's names); install them with this system's packages"
    if [ "$(id -u)" != 0 ] && ! has sudo; then
        fail "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}"
    fi
    begin_apt
    mapfile -t plain < <(printf '%s\n' "${missing[@]}" | grep -vxE 'postgresql|pgbouncer' || true)
    if [ ${#plain[@]} -gt 0 ]; then apt_install "${plain[@]}"; fi
    has_postgres || install_postgres
    if $bench && ! has pgbouncer; then install_pgbouncer; fi
fi

if $lints || $clients; then
    read -r -d '' -a drivers < <(without_clients) || true
    if [ ${#drivers[@]} -gt 0 ]; then
        (
            can_install || fail 'they cannot be installed here'
            [ -n "${log:-}" ] || begin_apt
            apt_install "${drivers[@]}"
        ) || echo "setup: missing: ${drivers[*]} (Debian's names); what needs them is skipped" >&2
    fi
fi

has cargo || fail "cargo is not installed: get Rust from https://rustup.rs"
$lints || exit 0
# What a system does not have, the tests of it say and skip.
extensions=()
if has apt-cache; then
    for major in $(without_cron); do
        package=postgresql-$major-cron
        if apt-cache show "$package" >/dev/null 2>&1; then extensions+=("$package"); fi
    done
fi
if [ ${#extensions[@]} -gt 0 ] && can_install; then
    [ -n "${log:-}" ] || begin_apt
    apt_install "${extensions[@]}"
fi
for component in fmt:rustfmt clippy:clippy; do
    cargo "${component%:*}" --version >/dev/null 2>&1 && continue
    has rustup || fail "cargo ${component%:*} is not installed: add it to this Rust"
    rustup component add "${component#*:}"
done

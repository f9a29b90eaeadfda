#!/usr/bin/env bash
# Real clients on the URLs that `branchctl url` prints: each has to reach the branch of its URL, and
# to leave the other ones alone.
#
#   run.sh            all clients
#   run.sh --ci       those that are installed in seconds
#   run.sh NAME...    these, such as node-pg
#
# Starts a server with the branches feature/login and other. The table `place` of a branch has its
# name. A client is a script in this directory, and gets these variables:
#
#   URL OTHER_URL MAIN_URL   as printed for feature/login, other and main
#   HOST_URL                 names feature/login by the host alone, so a client has to send it (SNI)
#   CA_FILE                  verifies that host
#   CLIENT                   its own name
#
# It prints its version first, makes the table `made` with its name in the one row, and ends with 0.
# Afterwards the row has to be on feature/login, and nothing new on main and other. Packages of PyPI
# and npm go to target/clients; tests/scripts/setup.sh installs Debian's. A client whose packages
# cannot be had is skipped, and that is printed.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="${CARGO_TARGET_DIR:-$PWD/target}"
bin=$target/debug
store=$target/clients
own=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1 || true)
# The real psql: what Debian puts first on the path is a slow wrapper in Perl.
export PATH="${own:+$own:}$PATH"
# What clients would take for parts of a URL.
unset "${!PG@}" DATABASE_URL

in_ci=(psql python-psycopg2 python-psycopg python-asyncpg python-sqlalchemy python-django
    perl-dbd-pg node-pg node-postgres)
others=(node-knex node-sequelize node-typeorm node-drizzle php ruby-pg ruby-activerecord jdbc)
jdbc=/usr/share/java/postgresql.jar
pid='' watcher='' dir='' npm_packages=all

die() {
    echo "clients: $*" >&2
    exit 1
}

# --- packages -------------------------------------------------------------------------------------

# Copies the first lines to standard error.
begin() { sed -n '1,5p' >&2; }

# Installs the packages of the list, unless these have been installed before.
install_python() {
    local list=tests/clients/requirements.txt
    python=$store/python
    cmp -s "$list" "$python/installed" && "$python/bin/python" -c '' && return
    rm -rf "$python"
    python3 -m venv "$python" &&
        timeout 300 "$python/bin/python" -m pip install --quiet --disable-pip-version-check \
            --only-binary :all: --retries 1 --timeout 15 --requirement "$list" 2>&1 | begin &&
        cp "$list" "$python/installed"
}

install_node() {
    local list=tests/clients/package.json options=(--no-package-lock --ignore-scripts)
    options+=(--no-audit --no-fund --loglevel error --fetch-retries 1 --fetch-timeout 15000
        --fetch-retry-mintimeout 1000)
    node=$store/node-$npm_packages
    if [ "$npm_packages" = ci ]; then options+=(--omit optional); fi
    cmp -s "$list" "$node/package.json" && [ -e "$node/installed" ] && return
    rm -rf "$node"
    mkdir -p "$node"
    cp "$list" "$node"
    (cd "$node" && timeout 300 npm install "${options[@]}" 2>&1 >/dev/null | begin) &&
        touch "$node/installed"
}

# Prints what client $1 lacks; nothing if it can run.
lacks() {
    case $1 in
    psql) type -P psql >/dev/null || echo 'psql is not installed' ;;
    python-*) [ -e "$python/installed" ] || echo 'packages of PyPI could not be installed' ;;
    node-*) [ -e "$node/installed" ] || echo 'packages of npm could not be installed' ;;
    perl-*) perl -MDBD::Pg -e 1 2>/dev/null || echo 'DBD::Pg is not installed' ;;
    php)
        php -r 'exit(extension_loaded("pgsql") && extension_loaded("pdo_pgsql") ? 0 : 1);' \
            2>/dev/null || echo 'PHP with pgsql and pdo_pgsql is not installed'
        ;;
    ruby-pg) ruby -rpg -e 1 2>/dev/null || echo 'pg for Ruby is not installed' ;;
    ruby-activerecord)
        ruby -rpg -ractive_record -e 1 2>/dev/null || echo 'ActiveRecord is not installed'
        ;;
    jdbc)
        { java --list-modules 2>/dev/null | grep '^jdk.compiler' >/dev/null &&
            [ -e "$jdbc" ]; } ||
            echo 'a JDK or the driver is not installed'
        ;;
    *) die "there is no client $1" ;;
    esac
}

# --- server ---------------------------------------------------------------------------------------

start_server() {
    local ready api
    dir=$(mktemp -d /var/tmp/coppice-clients.XXXXXX)
    # The user that Postgres runs as has to pass through.
    chmod 711 "$dir"
    : >"$dir/log"
    "$bin/pageserver" serve --data "$dir/data" --api 127.0.0.1:0 --proxy 127.0.0.1:0 \
        >"$dir/log" 2>&1 </dev/null &
    pid=$!
    # The server ends with this script, also where the script is killed.
    (tail -f /dev/null --pid $$ && kill -TERM "$pid") >/dev/null 2>&1 &
    watcher=$!
    until ready=$(grep ' ready ' "$dir/log"); do
        kill -0 "$pid" 2>/dev/null || die 'the server did not start'
        sleep 0.05
    done
    api=$(sed -n 's/.*api=\([^ ]*\).*/\1/p' <<<"$ready")
    export COPPICE_API=http://$api COPPICE_TOKEN_FILE=$dir/data/api-token
}

clean_up() {
    local status=$? mount tenths=600
    trap '' INT TERM
    if [ "$status" != 0 ] && [ -s "$dir/log" ]; then
        echo 'Last lines of the log of the server:' >&2
        tail -n 20 "$dir/log" >&2
    fi
    if [ -n "$watcher" ]; then kill "$watcher" || true; fi
    if [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null; then
        while kill -0 "$pid" 2>/dev/null && [ $((tenths -= 1)) -gt 0 ]; do sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" "$watcher" || true
    fi
    [ -n "$dir" ] || return
    for mount in "$dir/data/mount" "$dir/data/mount-wal"; do
        if grep -qsF " $mount " /proc/mounts; then fusermount3 -uz "$mount" || true; fi
    done
    rm -rf --one-file-system "$dir"
}

ask() { psql -XAtq -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }

# Makes the branches. What `place` says of main is changed on each.
prepare_branches() {
    MAIN_URL=$("$bin/branchctl" url main)
    ask "$MAIN_URL" "create table place as select 'main' as name"
    "$bin/branchctl" create feature/login >/dev/null
    "$bin/branchctl" create other >/dev/null
    URL=$("$bin/branchctl" url feature/login)
    OTHER_URL=$("$bin/branchctl" url other)
    HOST_URL=$(sed 's/\.feature-login:/:/; s/@127\.0\.0\.1:/@feature-login.localhost:/' <<<"$URL")
    CA_FILE=$("$bin/branchctl" status | sed -n 's/^CA file: *//p')
    export URL OTHER_URL MAIN_URL HOST_URL CA_FILE
    ask "$OTHER_URL" "update place set name = 'other'"
    echo '127.0.0.1 feature-login.localhost' >"$dir/hosts"
}

# Databases, and tables of `app`.
contents() {
    ask "$1" 'select datname from pg_database order by 1'
    ask "$1" "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1"
}

# --- clients --------------------------------------------------------------------------------------

run_script() {
    local script=tests/clients/$1
    case $1 in
    psql) timeout 120 bash "$script.sh" ;;
    python-*) PYTHONDONTWRITEBYTECODE=1 timeout 120 "$python/bin/python" "$script.py" ;;
    node-*) NODE_PATH=$node/node_modules timeout 120 node "$script.cjs" ;;
    perl-*) timeout 120 perl "$script.pl" ;;
    php) timeout 120 php "$script.php" ;;
    ruby-*) timeout 120 ruby "$script.rb" ;;
    # Not each machine resolves names below localhost.
    jdbc) timeout 120 java -Djdk.net.hosts.file="$dir/hosts" -cp "$jdbc" tests/clients/Jdbc.java ;;
    esac
}

# Runs client $1 and looks at the branches; prints what is wrong.
try() {
    local found
    run_script "$1" >"$dir/output" 2>&1 || {
        echo "exit code $?"
        tail -n 40 "$dir/output"
        return 1
    }
    found=$(ask "$URL" 'select client from made' 2>&1) || true
    [ "$found" = "$1" ] || {
        echo "its row is not on feature/login: $found"
        return 1
    }
    found=$(ask "$URL" 'select datname from pg_database order by 1' | paste -sd ' ')
    [ "$found" = 'app postgres template0 template1' ] || {
        echo "databases are left on feature/login: $found"
        return 1
    }
    [ "$(contents "$MAIN_URL")" = "$main_before" ] || {
        echo 'main is not as it was'
        return 1
    }
    [ "$(contents "$OTHER_URL")" = "$other_before" ] || {
        echo 'other is not as it was'
        return 1
    }
}

run_client() {
    local reason began us problem result version=''
    reason=$(lacks "$1")
    if [ -n "$reason" ]; then
        printf '    %-18s SKIPPED: %s\n' "$1" "$reason"
        skipped=$((skipped + 1))
        return
    fi
    "$bin/branchctl" reset feature/login >/dev/null
    ask "$URL" "update place set name = 'feature/login'"
    began=${EPOCHREALTIME/./}
    if problem=$(CLIENT=$1 try "$1"); then
        result=ok
        version=$(head -n 1 "$dir/output")
        passed=$((passed + 1))
    else
        result=FAILED
        failed=$((failed + 1))
    fi
    us=$((${EPOCHREALTIME/./} - began))
    printf '    %-18s %-28s %s, %d.%d s\n' "$1" "$version" "$result" \
        $((us / 1000000)) $((us / 100000 % 10))
    if [ "$result" = FAILED ]; then sed 's/^/        /' <<<"$problem" >&2; fi
}

case "${1:-}" in
'') clients=("${in_ci[@]}" "${others[@]}") ;;
--ci) clients=("${in_ci[@]}") npm_packages=ci ;;
-*) die "unknown option $1; it takes --ci or names of clients" ;;
*) clients=("$@") ;;
esac
[ -x "$bin/pageserver" ] || die 'build the programs first: cargo build --workspace --bins'
case " ${clients[*]}" in *' python-'*) install_python || true ;; esac
case " ${clients[*]}" in *' node-'*) install_node || true ;; esac

trap clean_up EXIT
trap 'exit 130' INT TERM
start_server
prepare_branches
main_before=$(contents "$MAIN_URL")
other_before=$(contents "$OTHER_URL")
passed=0 failed=0 skipped=0
for client in "${clients[@]}"; do run_client "$client"; done
echo "clients: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

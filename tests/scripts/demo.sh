#!/usr/bin/env bash
# The demo: load a real database, branch it, break the branch, show that main is untouched, reset,
# delete.
#
# Each step is timed as its client sees it, and then checked by a query; the first that did not do
# what it says ends the demo. `--once` stops the server at the end and leaves nothing; else it
# stays, and `--stop` ends it.
set -euo pipefail
cd "$(dirname "$0")/../.."

bin="${CARGO_TARGET_DIR:-target}/release"
state=.demo-server
branch=feature/checkout
postgres_bin=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1 || true)
# The real programs: what Debian puts first on the path is a Perl wrapper that takes longer than a
# branch.
export PATH="${postgres_bin:+$postgres_bin:}$PATH"

pid='' dir='' keep=no

die() {
    printf '\ndemo: %s\n' "$*" >&2
    exit 1
}

# --- server ---------------------------------------------------------------------------------------

# Whether process $1 is a server on directory $2, and no other that got its number.
serves() {
    [ -n "$1" ] && ! grep -qs '^State:[[:space:]]*Z' "/proc/$1/status" &&
        tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF -- "--data $2/data"
}

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Waits up to $1 tenths of a second for the rest of the command line to succeed.
await() {
    local tenths=$1
    shift
    until "$@"; do
        [ "$tenths" -gt 0 ] || return 1
        tenths=$((tenths - 1))
        sleep 0.1
    done
}

ended() { ! serves "$pid" "$dir"; }

stop_server() {
    if serves "$pid" "$dir"; then
        kill -TERM "$pid" || return 1
        await 600 ended || kill -KILL "$pid"
        await 100 ended
    fi
}

remove_files() {
    local mount
    for mount in "$dir/data/mount" "$dir/data/mount-wal"; do
        if grep -qsF " $mount " /proc/mounts; then fusermount3 -uz "$mount" || true; fi
    done
    rm -rf --one-file-system "$dir"
}

# Ends a server that an earlier demo left, or what remains of it.
stop_left_running() {
    [ -f "$state" ] || return 1
    read -r pid dir <"$state"
    case $dir in /var/tmp/coppice-demo.*) ;; *) die "$state names $dir, which is no demo's directory: remove the file" ;; esac
    stop_server || die "cannot stop process $pid: was it started by another user?"
    remove_files
    rm -f "$state"
    pid='' dir=''
}

clean_up() {
    local status=$?
    trap '' INT TERM
    if [ "$keep" = yes ] || [ -z "$dir" ]; then return; fi
    if [ "$status" != 0 ] && [ -s "$dir/log" ]; then
        printf '\nLast lines of the log of the server:\n' >&2
        tail -n 20 "$dir/log" >&2
    fi
    stop_server || true
    remove_files
    exit "$status"
}

start_server() {
    local api=127.0.0.1:8432 proxy=127.0.0.1:5433
    if taken 8432; then api=127.0.0.1:0; fi
    if taken 5433; then proxy=127.0.0.1:0; fi
    # A session of its own, so that Ctrl-C later on in this terminal does not reach it.
    setsid "$bin/pageserver" serve --data "$dir/data" --api "$api" --proxy "$proxy" \
        >"$dir/log" 2>&1 </dev/null &
    pid=$!
    until grep -q ' ready ' "$dir/log"; do
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.01
    done
    COPPICE_API=http://$(sed -n 's/.* ready .*api=\([^ ]*\).*/\1/p' "$dir/log")
    proxy=$(sed -n 's/.* ready .*proxy=\([^ ]*\).*/\1/p' "$dir/log")
    export COPPICE_API COPPICE_TOKEN_FILE="$dir/data/api-token"
    export PGHOST=${proxy%:*} PGPORT=${proxy##*:} PGUSER=postgres PGCONNECT_TIMEOUT=60
    url=$("$bin/branchctl" url main) || return 1
    PGPASSWORD=${url#postgresql://*:}
    export PGPASSWORD=${PGPASSWORD%%@*}
}

# --- steps ----------------------------------------------------------------------------------------

answer=''

# Does a step and prints its time; what it prints is kept in `answer`.
step() {
    local label=$1 began us
    shift
    printf '  %-54s' "$label"
    began=${EPOCHREALTIME/./}
    "$@" >"$dir/answer" 2>&1 || {
        printf '  FAILED\n'
        sed 's/^/    /' "$dir/answer" >&2
        die "this step failed: $label"
    }
    us=$((${EPOCHREALTIME/./} - began))
    answer=$(<"$dir/answer")
    printf '%7d.%d ms' $((us / 1000)) $((us / 100 % 10))
}

# Ends the line of a step with what was to be shown, if it is so.
check() {
    local claim=$1 found=$2 expected=$3
    if [ "$found" != "$expected" ]; then
        printf '  NOT SO\n'
        die "expected: $claim (\"$expected\"), found: \"$found\""
    fi
    printf '   %s\n' "$claim"
}

sql() { psql -XAtq -v ON_ERROR_STOP=1 -d "app@$1" -c "$2"; }

# Differs as soon as one row of one table does.
fingerprint() {
    sql "$1" "
        select md5(string_agg(part, ' ' order by part)) from (
            select 'accounts ' || sum(hashint8(aid::bigint * 7919 + abalance)::bigint) from pgbench_accounts
            union all select 'tellers ' || sum(hashtext(t::text)::bigint) from pgbench_tellers t
            union all select 'branches ' || sum(hashtext(t::text)::bigint) from pgbench_branches t
            union all select 'history ' || count(*) || ' ' || sum(hashtext(t::text)::bigint) from pgbench_history t
            union all select 'customers ' || sum(hashtext(t::text)::bigint) from shop.customers t
            union all select 'products ' || sum(hashtext(t::text)::bigint) from shop.products t
            union all select 'orders ' || sum(hashtext(t::text)::bigint) from shop.orders t
            union all select 'items ' || sum(hashtext(t::text)::bigint) from shop.order_items t
            union all select 'keys ' || count(*) from pg_constraint where contype = 'f' and convalidated
        ) parts (part)"
}

branch_field() { "$bin/branchctl" show "$1" | sed -n "s/^$2: *//p"; }

load() {
    step 'load pgbench, scale 10' pgbench -i -q -s 10 app@main
    check '1,000,000 accounts' "$(sql main 'select count(*) from pgbench_accounts')" 1000000
    step 'run 2,000 bank transfers' pgbench -n -c 2 -t 1000 app@main
    check 'the balances agree' "$(sql main "
        select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts),
            sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history")" '2000|t|t'
    step 'load a shop of four tables with foreign keys' psql -Xq -v ON_ERROR_STOP=1 -d app@main -f tests/scripts/shop.sql
    check '100,000 orders, 300,000 items' "$(sql main '
        select (select count(*) from shop.orders), (select count(*) from shop.order_items),
            (select count(*) from pg_constraint where contype = $$f$$)')" '100000|300000|3'
    before=$(fingerprint main)
    # Postgres does it every five minutes. A branch of a parent that just loaded a lot replays all
    # of it at its start.
    step 'checkpoint' sql main 'checkpoint'
    check 'little to replay' "$(sql main '
        select pg_current_wal_insert_lsn() - redo_lsn < 1e6 from pg_control_checkpoint()')" t
}

branch_and_break() {
    step "create branch $branch" "$bin/branchctl" create "$branch"
    check 'its parent is main' "$(branch_field "$branch" parent)" main
    step 'first query on it, which starts its Postgres' sql "$branch" 'select count(*) from shop.orders'
    check 'every row as on main' "$(fingerprint "$branch")" "$before"
    step 'break it: drop tables, delete all customers' sql "$branch" '
        drop table pgbench_accounts, pgbench_history;
        delete from shop.customers;
        update shop.products set price_cents = 1;'
    check 'tables gone, 0 orders left' "$(sql "$branch" '
        select to_regclass($$pgbench_accounts$$) is null, to_regclass($$pgbench_history$$) is null,
            (select count(*) from shop.orders)')" 't|t|0'
    step 'look at main' sql main 'select count(*) from shop.orders'
    check 'untouched, every row' "$(fingerprint main)" "$before"
    step 'reset the branch' "$bin/branchctl" reset "$branch"
    check 'every row as on main again' "$(fingerprint "$branch")" "$before"
}

connect_by_name() {
    step 'suspend it' "$bin/branchctl" suspend "$branch"
    check 'no process left' "$(branch_field "$branch" state)" suspended
    sql "$branch" 'create table only_here as select 1' >/dev/null
    "$bin/branchctl" suspend "$branch" >/dev/null
    step 'connect by host name over TLS, which wakes it' psql -XAtq -c 'table only_here' \
        "host=${branch//\//-}.localhost hostaddr=$PGHOST sslmode=require dbname=app"
    check "${branch//\//-}.localhost" "$answer" 1
    step 'connect by startup option' psql -XAtq -c 'table only_here' "dbname=app options=branch=$branch"
    check "options=branch=$branch" "$answer" 1
    step 'connect by database name' psql -XAtq -c 'table only_here' "dbname=app@$branch"
    check "dbname=app@$branch" "$answer" 1
}

delete_branch() {
    step 'delete the branch' "$bin/branchctl" delete "$branch"
    local refused
    refused=$(sql "$branch" 'select 1' 2>&1 | grep -o 'branch .* does not exist' | sort -u) || true
    check 'connections to it are refused' "$refused" "branch \"$branch\" does not exist"
    step 'look at main' sql main 'select count(*) from shop.orders'
    check 'untouched, every row' "$(fingerprint main)" "$before"
}

# --- end ------------------------------------------------------------------------------------------

stop_and_wait() {
    kill -TERM "$pid"
    await 600 ended || return 1
    wait "$pid"
}

# Processes whose command line names $1; not with grep, which would find itself.
processes_of() {
    local file words
    for file in /proc/[0-9]*/cmdline; do
        mapfile -d '' -t words 2>/dev/null <"$file" || continue
        if [[ "${words[*]}" == *"$1"* ]]; then printf '%s\n' "$file: ${words[*]}"; fi
    done 2>/dev/null
}

finish_once() {
    step 'stop the server' stop_and_wait
    check 'exit code 0, nothing mounted' "$(grep -cF " $dir/" /proc/mounts || true)" 0
    step 'verify the store, every record and page' "$bin/pageserver" check --data "$dir/data"
    check 'no fault' "${answer##*: }" '0 faults'
    local was=$dir
    remove_files
    dir=''
    local left
    left=$(processes_of "$was/data")
    [ -z "$left" ] || die "processes are left: $left"
    [ ! -e "$was" ] || die "files are left in $was"
    printf '\nEverything was as it should be. Nothing is left running, mounted or on disk.\n'
}

finish_running() {
    echo "$pid $dir" >"$state"
    keep=yes
    cat <<END

The server is running (process $pid, log in $dir/log).

Connect to main with any Postgres client:
  psql '$url'

Make branches of it:
  export COPPICE_TOKEN_FILE=$COPPICE_TOKEN_FILE${api_line}
  $bin/branchctl create feature/login
  $bin/branchctl psql feature/login
  $bin/branchctl list

Stop it and remove its files:
  make stop
END
}

main() {
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    dir=$(mktemp -d /var/tmp/coppice-demo.XXXXXX)
    # The user that Postgres runs as has to pass through.
    chmod 711 "$dir"
    printf 'Coppice on %s\n\n' "$(postgres -V)"
    step 'start the server on an empty store, initdb included' start_server
    check 'branches can be created' "$("$bin/branchctl" status | sed -n 's/^branches: *\([0-9]*\).*/\1/p')" 1
    load
    branch_and_break
    connect_by_name
    delete_branch
}

case "${1:-}" in
--stop)
    if stop_left_running; then echo 'The demo server is stopped and its files are removed.'; else echo 'No demo server is running.'; fi
    ;;
--once)
    main
    finish_once
    ;;
'')
    if stop_left_running; then printf 'Stopped the server of the last demo.\n\n'; fi
    main
    api_line=''
    if [ "$COPPICE_API" != http://127.0.0.1:8432 ]; then api_line=" COPPICE_API=$COPPICE_API"; fi
    finish_running
    ;;
*) die "unknown argument $1; it takes --once or --stop" ;;
esac

#!/usr/bin/env bash
# psql, and with it libpq.
set -euo pipefail

ask() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }

expect() {
    [ "$2" = "$3" ] || {
        echo "$1: \"$3\" was expected, not \"$2\""
        exit 1
    }
}

place='select name from place'

psql --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1
expect 'the URL' "$(ask -c "$place" "$URL")" feature/login
expect 'the URL of the other branch' "$(ask -c "$place" "$OTHER_URL")" other

ask -c 'create table made (client text)' -c "insert into made values ('$CLIENT')" "$URL"
expect 'the row' "$(ask -c 'select client from made' "$URL")" "$CLIENT"

expect 'sslmode=require' "$(ask -c "$place" "$URL?sslmode=require")" feature/login
verified="$HOST_URL?sslmode=verify-full&sslrootcert=$CA_FILE&hostaddr=127.0.0.1"
expect 'sslmode=verify-full' "$(ask -c "$place" "$verified")" feature/login

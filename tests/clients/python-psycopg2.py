"""psycopg 2."""

import os

import psycopg2

URL, CLIENT = os.environ["URL"], os.environ["CLIENT"]
PLACE = "select name from place"


def first(url, *statements, **parameters):
    """Does the statements in a session of their own, and returns the first value of the last."""
    connection = psycopg2.connect(url, **parameters)
    try:
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement, {"client": CLIENT})
            return cursor.fetchone()[0], connection.info.ssl_in_use
    finally:
        connection.close()


version = psycopg2.extensions.libpq_version()
print(f"{psycopg2.__version__.split()[0]}, libpq {version // 10000}")
assert first(URL, PLACE)[0] == "feature/login"
assert first(os.environ["OTHER_URL"], PLACE)[0] == "other"

made = "create table made (client text)", "insert into made values (%(client)s)"
assert first(URL, *made, "select client from made")[0] == CLIENT

assert first(URL, PLACE, sslmode="require") == ("feature/login", True)
verify = {"sslmode": "verify-full", "sslrootcert": os.environ["CA_FILE"]}
verified = first(os.environ["HOST_URL"], PLACE, hostaddr="127.0.0.1", **verify)
assert verified == ("feature/login", True)

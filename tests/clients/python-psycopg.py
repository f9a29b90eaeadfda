"""psycopg 3, also with statements that it prepares, through a pipeline, and with COPY."""

import asyncio
import os

import psycopg

URL, CLIENT = os.environ["URL"], os.environ["CLIENT"]
PLACE = "select name from place"


def place(url, **parameters):
    with psycopg.connect(url, **parameters) as connection:
        secure = connection.pgconn.ssl_in_use
        return connection.execute(PLACE).fetchone()[0], secure


async def place_async(url):
    async with await psycopg.AsyncConnection.connect(url) as connection:
        return (await (await connection.execute(PLACE)).fetchone())[0]


print(f"{psycopg.__version__}, libpq {psycopg.pq.version() // 10000}")
assert place(URL)[0] == "feature/login"
assert place(os.environ["OTHER_URL"])[0] == "other"
assert asyncio.run(place_async(URL)) == "feature/login"

with psycopg.connect(URL) as connection:
    with connection.pipeline():
        connection.execute("create table made (client text)")
        connection.execute("insert into made values (%s)", [CLIENT], prepare=True)
    with connection.cursor().copy("copy made to stdout") as copy:
        assert [row[0] for row in copy.rows()] == [CLIENT]

assert place(URL, sslmode="require") == ("feature/login", True)
verify = {"sslmode": "verify-full", "sslrootcert": os.environ["CA_FILE"]}
verified = place(os.environ["HOST_URL"], hostaddr="127.0.0.1", **verify)
assert verified == ("feature/login", True)

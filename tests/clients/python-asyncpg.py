"""asyncpg, and with it the module ssl of Python."""

import asyncio
import os
import socket
import ssl

import asyncpg

URL, CLIENT, CA_FILE = os.environ["URL"], os.environ["CLIENT"], os.environ["CA_FILE"]
PLACE = "select name from place"


async def place(url, **parameters):
    connection = await asyncpg.connect(url, **parameters)
    try:
        secure = connection._transport.get_extra_info("ssl_object") is not None
        return await connection.fetchval(PLACE), secure
    finally:
        await connection.close()


def resolve_below_localhost():
    """Asyncpg takes no address apart from the name, and not each machine knows such names."""
    resolve = socket.getaddrinfo

    def with_localhost(host, *others, **named):
        below = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if below else host, *others, **named)

    socket.getaddrinfo = with_localhost


async def main():
    assert (await place(URL))[0] == "feature/login"
    assert (await place(os.environ["OTHER_URL"]))[0] == "other"

    connection = await asyncpg.connect(URL)
    await connection.execute("create table made (client text)")
    await connection.execute("insert into made values ($1)", CLIENT)
    assert await connection.fetchval("select client from made") == CLIENT
    await connection.close()

    assert await place(f"{URL}?sslmode=require") == ("feature/login", True)
    resolve_below_localhost()
    host_url = os.environ["HOST_URL"]
    verified = f"{host_url}?sslmode=verify-full&sslrootcert={CA_FILE}"
    assert await place(verified) == ("feature/login", True)
    context = ssl.create_default_context(cafile=CA_FILE)
    assert await place(host_url, ssl=context) == ("feature/login", True)


print(asyncpg.__version__)
asyncio.run(main())

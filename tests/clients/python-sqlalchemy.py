"""SQLAlchemy over psycopg2, psycopg and asyncpg, and a migration with Alembic."""

import asyncio
import os
import pathlib

import alembic
import alembic.command
import alembic.config
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

URL, CLIENT = os.environ["URL"], os.environ["CLIENT"]
PLACE = sqlalchemy.text("select name from place")


def dialect(url, name):
    return url.replace("postgresql:", f"postgresql+{name}:")


def place(url):
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        name = connection.scalar(PLACE)
    engine.dispose()
    return name


async def place_async(url):
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        name = await connection.scalar(PLACE)
    await engine.dispose()
    return name


def migrate(url):
    """Makes the table `made`, by the migration in the directory `alembic-project`."""
    config = alembic.config.Config()
    place = pathlib.Path(__file__).parent / "alembic-project"
    config.set_main_option("script_location", str(place))
    # Alembic's settings give a `%` a meaning.
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    alembic.command.upgrade(config, "head")


print(f"{sqlalchemy.__version__}, Alembic {alembic.__version__}")
for name in ["psycopg2", "psycopg"]:
    assert place(dialect(URL, name)) == "feature/login"
    assert place(dialect(os.environ["OTHER_URL"], name)) == "other"
    assert place(dialect(URL, name) + "?sslmode=require") == "feature/login"
# The URL as it is printed, with the driver that SQLAlchemy takes then.
assert place(URL) == "feature/login"
assert asyncio.run(place_async(dialect(URL, "asyncpg"))) == "feature/login"
assert asyncio.run(place_async(dialect(URL, "asyncpg") + "?ssl=require")) == "feature/login"

migrate(URL)
engine = sqlalchemy.create_engine(URL)
made = sqlalchemy.Table("made", sqlalchemy.MetaData(), autoload_with=engine)
with engine.begin() as connection:
    connection.execute(made.insert().values(client=CLIENT))
with engine.connect() as connection:
    assert connection.scalar(sqlalchemy.select(made.c.client)) == CLIENT

"""Django: a migration, a model, and the test runner, which makes and drops a database."""

import os
import pathlib
import subprocess
import sys

import django
import psycopg
from django.core.management import call_command
from django.db import connections

PROJECT = pathlib.Path(__file__).parent / "django-project"
BRANCHES = {"main": "MAIN_URL", "feature/login": "URL", "other": "OTHER_URL"}


def place(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("select name from place")
        return cursor.fetchone()[0]


def test(*options):
    command = [sys.executable, str(PROJECT / "manage.py"), "test", "shop", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "Ran 1 test" in told, told


def branches_with_test_database():
    found = []
    for name, variable in BRANCHES.items():
        with psycopg.connect(os.environ[variable]) as session:
            query = "select 1 from pg_database where datname = 'test_app'"
            if session.execute(query).fetchone():
                found.append(name)
    return found


print(django.__version__)
sys.path.insert(0, str(PROJECT))
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
assert place("default") == "feature/login"
assert place("secure") == "feature/login"
assert place("other") == "other"

call_command("migrate", verbosity=0)
from shop.models import Made  # noqa: E402, as models wait for the setup

client = os.environ["CLIENT"]
Made.objects.create(client=client)
assert Made.objects.get().client == client

test("--keepdb")
assert branches_with_test_database() == ["feature/login"]
test("--noinput")
assert branches_with_test_database() == []

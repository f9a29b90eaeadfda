"""The printed URLs as Django's settings, over psycopg 3."""

import os

import dj_database_url

DATABASES = {
    "default": dj_database_url.parse(os.environ["URL"]),
    "secure": dj_database_url.parse(os.environ["URL"] + "?sslmode=require"),
    "other": dj_database_url.parse(os.environ["OTHER_URL"]),
}
INSTALLED_APPS = ["shop"]
USE_TZ = True

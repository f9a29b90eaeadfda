"""What the test runner runs in the database `test_app`."""

from django.db import connection
from django.test import TestCase

from shop.models import Made


class Database(TestCase):
    def test_is_one_of_its_own(self):
        with connection.cursor() as cursor:
            cursor.execute("select current_database(), to_regclass('place')")
            self.assertEqual(cursor.fetchone(), ("test_app", None))
        Made.objects.create(client="a test")
        self.assertEqual(Made.objects.count(), 1)

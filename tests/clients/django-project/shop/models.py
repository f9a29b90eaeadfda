"""The table `made`."""

from django.db import models


class Made(models.Model):
    client = models.TextField(primary_key=True)

    class Meta:
        db_table = "made"

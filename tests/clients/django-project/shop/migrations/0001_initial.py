"""The table `made`."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            name="Made",
            fields=[("client", models.TextField(primary_key=True, serialize=False))],
            options={"db_table": "made"},
        ),
    ]

"""The table `made`."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.create_table("made", sa.Column("client", sa.Text, nullable=False))


def downgrade():
    op.drop_table("made")

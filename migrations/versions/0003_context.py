"""what stands beside a conversation is found without reading all of it"""

from migrations.sql import execute

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE INDEX messages_beside ON messages (thread_id, type, position DESC)
    WHERE type IN ('browser_state', 'image_context', 'summary');
"""

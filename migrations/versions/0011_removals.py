"""what a deletion leaves outside Postgres is removed by somebody, whoever dies in between"""

from migrations.sql import execute

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE TABLE removals (
    removal_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id    uuid,
    run_ids       uuid[] NOT NULL,
    noted_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE removals IS 'what was deleted of late, and may have left a sandbox or keys in Redis';
"""

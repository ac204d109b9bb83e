"""what is old enough to be deleted is found by an index; one sweep at a time"""

from migrations.sql import execute

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
ALTER TABLE agent_runs ADD COLUMN events_removed_at timestamptz;
COMMENT ON COLUMN agent_runs.events_removed_at IS 'when the last archived event went: only the row tells of the end';
CREATE INDEX agent_runs_with_events ON agent_runs (completed_at)
    WHERE closed_at IS NOT NULL AND events_removed_at IS NULL;
CREATE INDEX messages_age ON messages (created_at, position);

CREATE TABLE retention_turns (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    owner       text NOT NULL DEFAULT '',
    until       timestamptz NOT NULL DEFAULT '-infinity',
    began_at    timestamptz,
    ended_at    timestamptz,
    removed     jsonb NOT NULL DEFAULT '{}'
);
INSERT INTO retention_turns DEFAULT VALUES;
COMMENT ON TABLE retention_turns IS 'whose turn it is to delete what is old, and what the last sweep removed';
"""

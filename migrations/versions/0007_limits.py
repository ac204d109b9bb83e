"""limits of accounts; every delayed run is judged when it is due: then it needs a slot"""

from migrations.sql import execute

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE TABLE account_limits (
    account_id             uuid PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    max_concurrent_runs    int CHECK (max_concurrent_runs >= 0),
    rate_limit_per_minute  int CHECK (rate_limit_per_minute >= 0),
    updated_at             timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE account_limits IS 'what operators gave an account; NULL: as the settings say, 0: no limit';

COMMENT ON COLUMN agent_runs.judged IS 'false until a delayed run is due, has stopped the others and has a slot';
UPDATE agent_runs SET judged = false WHERE status = 'queued' AND started_at IS NULL AND not_before > now();
"""

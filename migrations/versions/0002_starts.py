"""idempotency keys, delayed runs that are judged when due, one running run per project"""

from migrations.sql import execute

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
ALTER TABLE agent_runs ADD COLUMN judged boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN agent_runs.judged IS 'false until a delayed run that stops others is due and has stopped them';
UPDATE agent_runs SET judged = false
    WHERE status = 'queued' AND started_at IS NULL AND on_active = 'stop' AND not_before > now();
CREATE INDEX agent_runs_unjudged ON agent_runs (not_before) WHERE status = 'queued' AND NOT judged;
CREATE UNIQUE INDEX agent_runs_one_running ON agent_runs (project_id) WHERE status = 'running';

CREATE TABLE idempotency_keys (
    account_id    uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    route         text NOT NULL,
    key           text NOT NULL,
    fingerprint   bytea NOT NULL,
    agent_run_id  uuid NOT NULL UNIQUE REFERENCES agent_runs ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, route, key)
);
COMMENT ON COLUMN idempotency_keys.fingerprint IS 'of the request: the same key with another one is refused';
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
"""

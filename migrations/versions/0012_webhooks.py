"""whoever started a run is told of its end; secrets that webhooks are signed with; workflows that webhooks start"""

from migrations.sql import execute

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
ALTER TABLE agent_runs ADD COLUMN webhook_noted_at timestamptz;
COMMENT ON COLUMN agent_runs.webhook_noted_at IS 'when a delivery was made of its end';
UPDATE agent_runs SET webhook_noted_at = now() WHERE webhook_url IS NOT NULL AND completed_at IS NOT NULL;
CREATE INDEX agent_runs_unnoted ON agent_runs (completed_at)
    WHERE completed_at IS NOT NULL AND webhook_url IS NOT NULL AND webhook_noted_at IS NULL;

CREATE TABLE webhook_deliveries (
    agent_run_id  uuid PRIMARY KEY REFERENCES agent_runs ON DELETE CASCADE,
    account_id    uuid NOT NULL,
    receiver      text NOT NULL,
    state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed', 'gone')),
    attempt       int NOT NULL DEFAULT 0,
    attempts      jsonb NOT NULL DEFAULT '[]',
    due_at        timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    CHECK ((ended_at IS NULL) = (state = 'pending'))
);
COMMENT ON COLUMN webhook_deliveries.receiver IS 'host and port of the URL: what is slow together';
COMMENT ON COLUMN webhook_deliveries.attempt IS 'the fence: raised by whoever sends it';
COMMENT ON COLUMN webhook_deliveries.due_at IS 'the next attempt; while one is under way, when it counts as lost';
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (due_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX webhook_deliveries_account
    ON webhook_deliveries (account_id, created_at DESC, agent_run_id DESC);

CREATE TABLE account_webhook_secrets (
    account_id      uuid PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    secret          text NOT NULL,
    previous        text,
    previous_until  timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    rotated_at      timestamptz
);
COMMENT ON TABLE account_webhook_secrets IS 'sealed; what the ends of runs are signed with';

CREATE TABLE workflow_webhooks (
    workflow_id     uuid PRIMARY KEY REFERENCES workflows ON DELETE CASCADE,
    format          text NOT NULL CHECK (format IN ('standard', 'slack', 'telegram')),
    secret          text NOT NULL,
    previous        text,
    previous_until  timestamptz,
    created_by      uuid,
    created_at      timestamptz NOT NULL DEFAULT now(),
    rotated_at      timestamptz
);
COMMENT ON TABLE workflow_webhooks IS 'the secret that who signs with it may start the workflow; sealed';
"""

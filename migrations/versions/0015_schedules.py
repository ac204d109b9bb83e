"""schedules, what came of each firing, and what QStash has been told"""

from migrations.sql import execute

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE TABLE schedules (
    schedule_id       uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id        uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    workflow_id       uuid REFERENCES workflows ON DELETE CASCADE,
    thread_id         uuid REFERENCES threads ON DELETE CASCADE,
    agent_id          uuid,
    name              text NOT NULL,
    description       text NOT NULL DEFAULT '',
    config            jsonb NOT NULL,
    variables         jsonb NOT NULL DEFAULT '{}',
    prompt            text,
    model_name        text,
    missed            text NOT NULL DEFAULT 'once' CHECK (missed IN ('skip', 'once', 'all')),
    status            text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'completed')),
    anchor            timestamptz NOT NULL,
    next_fire_at      timestamptz,
    last_fired_at     timestamptz,
    claimed_until     timestamptz,
    execution_count   bigint NOT NULL DEFAULT 0,
    error_count       bigint NOT NULL DEFAULT 0,
    revision          bigint NOT NULL DEFAULT 1,
    told_revision     bigint,
    telling_until     timestamptz,
    telling_error     text,
    created_by        uuid,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (num_nonnulls(workflow_id, thread_id) = 1),
    CHECK ((thread_id IS NULL) = (prompt IS NULL)),
    CHECK (next_fire_at IS NULL OR status = 'active')
);
COMMENT ON COLUMN schedules.agent_id IS 'no reference: a schedule without the agent that was chosen must not fire';
COMMENT ON COLUMN schedules.anchor IS 'since when a simple interval counts';
COMMENT ON COLUMN schedules.claimed_until IS 'how long others leave a due one to the worker that fires it';
COMMENT ON COLUMN schedules.told_revision IS 'the revision that QStash has been told';
COMMENT ON COLUMN schedules.telling_until IS 'how long nobody else tells QStash, or tries again';
CREATE INDEX schedules_account ON schedules (account_id, created_at DESC, schedule_id DESC);
CREATE INDEX schedules_workflow ON schedules (workflow_id) WHERE workflow_id IS NOT NULL;
CREATE INDEX schedules_thread ON schedules (thread_id) WHERE thread_id IS NOT NULL;
CREATE INDEX schedules_due ON schedules (next_fire_at) WHERE next_fire_at IS NOT NULL;
CREATE INDEX schedules_untold ON schedules (schedule_id) WHERE told_revision IS DISTINCT FROM revision;

CREATE TABLE schedule_firings (
    firing_id      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    schedule_id    uuid NOT NULL REFERENCES schedules ON DELETE CASCADE,
    fire_time      timestamptz NOT NULL,
    status         text NOT NULL CHECK (status IN ('started', 'skipped', 'failed')),
    agent_run_id   uuid REFERENCES agent_runs ON DELETE SET NULL,
    execution_id   uuid,
    error          text,
    message_id     text,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (schedule_id, fire_time),
    UNIQUE (schedule_id, message_id)
);
COMMENT ON TABLE schedule_firings IS 'one row a fire time, written with what it started';
COMMENT ON COLUMN schedule_firings.message_id IS 'the delivery of QStash that brought it about';
CREATE INDEX schedule_firings_schedule ON schedule_firings (schedule_id, created_at DESC, firing_id DESC);
CREATE INDEX schedule_firings_run ON schedule_firings (agent_run_id) WHERE agent_run_id IS NOT NULL;
CREATE INDEX schedule_firings_age ON schedule_firings (created_at);

CREATE TABLE schedule_remotes (
    schedule_id    uuid PRIMARY KEY,
    telling_until  timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE schedule_remotes IS 'what QStash may know: noted before it is told, forgotten once it has forgotten';
"""

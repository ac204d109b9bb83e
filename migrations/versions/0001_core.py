"""accounts, projects, threads, messages, uploads, agents, runs and their archived logs"""

from migrations.sql import execute

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE TABLE accounts (
    account_id    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name          text NOT NULL,
    personal      boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX accounts_name ON accounts (name) WHERE personal;

CREATE TABLE account_members (
    account_id    uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    user_id       uuid NOT NULL,
    role          text NOT NULL CHECK (role IN ('owner', 'member', 'viewer')),
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, user_id)
);
CREATE INDEX account_members_user ON account_members (user_id);

CREATE TABLE projects (
    project_id    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id    uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    name          text NOT NULL,
    description   text NOT NULL DEFAULT '',
    sandbox       jsonb NOT NULL DEFAULT '{}',
    is_public     boolean NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projects_account ON projects (account_id, created_at DESC, project_id DESC);

CREATE TABLE agents (
    agent_id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id          uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    name                text NOT NULL,
    description         text NOT NULL DEFAULT '',
    is_default          boolean NOT NULL DEFAULT false,
    avatar              text,
    avatar_color        text,
    current_version_id  uuid,
    version_count       int NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX agents_account ON agents (account_id, created_at DESC, agent_id DESC);
CREATE UNIQUE INDEX agents_default ON agents (account_id) WHERE is_default;

CREATE TABLE agent_versions (
    version_id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    agent_id          uuid NOT NULL REFERENCES agents ON DELETE CASCADE,
    version_number    int NOT NULL,
    version_name      text NOT NULL,
    system_prompt     text NOT NULL DEFAULT '',
    configured_mcps   jsonb NOT NULL DEFAULT '[]',
    custom_mcps       jsonb NOT NULL DEFAULT '[]',
    agentpress_tools  jsonb NOT NULL DEFAULT '{}',
    created_by        uuid,
    created_at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agent_id, version_number)
);
ALTER TABLE agents ADD FOREIGN KEY (current_version_id)
    REFERENCES agent_versions (version_id) DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE threads (
    thread_id     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id    uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    project_id    uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    metadata      jsonb NOT NULL DEFAULT '{}',
    is_public     boolean NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX threads_account ON threads (account_id, created_at DESC, thread_id DESC);
CREATE INDEX threads_project ON threads (project_id, created_at DESC);

CREATE TABLE agent_runs (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    kind               text NOT NULL DEFAULT 'agent' CHECK (kind IN ('agent', 'workflow')),
    account_id         uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    project_id         uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    thread_id          uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    agent_id           uuid REFERENCES agents ON DELETE SET NULL,
    agent_version_id   uuid REFERENCES agent_versions ON DELETE SET NULL,
    created_by         uuid,
    status             text NOT NULL DEFAULT 'queued'
                       CHECK (status IN ('queued', 'running', 'completed', 'failed', 'stopped')),
    model_name         text NOT NULL,
    settings           jsonb NOT NULL DEFAULT '{}',
    metadata           jsonb NOT NULL DEFAULT '{}',
    webhook_url        text,
    priority           smallint NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 9),
    on_active          text NOT NULL DEFAULT 'stop' CHECK (on_active IN ('stop', 'reject', 'queue')),
    attempt            int NOT NULL DEFAULT 0,
    crashes            int NOT NULL DEFAULT 0,
    instance_id        text,
    heartbeat_at       timestamptz,
    stop_requested_at  timestamptz,
    not_before         timestamptz,
    expires_at         timestamptz,
    message_sent_at    timestamptz,
    message_tried_at   timestamptz,
    error              text,
    usage              jsonb NOT NULL DEFAULT '{}',
    archived_events    bigint NOT NULL DEFAULT 0,
    reserved_events    bigint NOT NULL DEFAULT 0,
    log_epoch          text,
    event_count        bigint,
    started_at         timestamptz,
    completed_at       timestamptz,
    closed_at          timestamptz,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    CHECK ((completed_at IS NULL) = (status IN ('queued', 'running')))
);
COMMENT ON COLUMN agent_runs.attempt IS 'the fence: raised by a claim or by whoever ends a run from outside';
COMMENT ON COLUMN agent_runs.message_sent_at IS 'when the broker confirmed the last wake-up message';
COMMENT ON COLUMN agent_runs.message_tried_at IS 'when a sweeper last sent a wake-up message';
COMMENT ON COLUMN agent_runs.reserved_events IS 'ids below this may have been given out; none is ever used twice';
COMMENT ON COLUMN agent_runs.log_epoch IS 'identity of the Redis server that held the log when ids were reserved';
COMMENT ON COLUMN agent_runs.closed_at IS 'when the last event was published and the whole log archived';
CREATE INDEX agent_runs_thread ON agent_runs (thread_id, created_at DESC, id DESC);
CREATE INDEX agent_runs_project ON agent_runs (project_id, created_at DESC, id DESC);
CREATE INDEX agent_runs_account ON agent_runs (account_id, created_at DESC, id DESC);
CREATE INDEX agent_runs_account_status ON agent_runs (account_id, status, created_at DESC, id DESC);
CREATE INDEX agent_runs_live ON agent_runs (account_id) WHERE status IN ('queued', 'running');
CREATE INDEX agent_runs_queued ON agent_runs (created_at) WHERE status = 'queued';
CREATE INDEX agent_runs_running ON agent_runs (heartbeat_at) WHERE status = 'running';
CREATE INDEX agent_runs_project_live ON agent_runs (project_id, created_at) WHERE status IN ('queued', 'running');
CREATE INDEX agent_runs_unclosed ON agent_runs (completed_at) WHERE completed_at IS NOT NULL AND closed_at IS NULL;

CREATE TABLE agent_run_event_blocks (
    agent_run_id  uuid NOT NULL REFERENCES agent_runs ON DELETE CASCADE,
    first_id      bigint NOT NULL,
    event_count   int NOT NULL CHECK (event_count > 0),
    events        bytea NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent_run_id, first_id)
);

CREATE TABLE messages (
    message_id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    position          bigint GENERATED ALWAYS AS IDENTITY,
    thread_id         uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    agent_run_id      uuid REFERENCES agent_runs ON DELETE SET NULL,
    type              text NOT NULL,
    is_llm_message    boolean NOT NULL DEFAULT true,
    content           jsonb NOT NULL,
    metadata          jsonb NOT NULL DEFAULT '{}',
    agent_id          uuid REFERENCES agents ON DELETE SET NULL,
    agent_version_id  uuid REFERENCES agent_versions ON DELETE SET NULL,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN messages.position IS 'the order inside a thread: timestamps of one transaction may tie';
CREATE INDEX messages_thread ON messages (thread_id, position DESC);
CREATE INDEX messages_run ON messages (agent_run_id) WHERE agent_run_id IS NOT NULL;

CREATE TABLE uploads (
    upload_id     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id    uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    agent_run_id  uuid NOT NULL REFERENCES agent_runs ON DELETE CASCADE,
    name          text NOT NULL,
    content_type  text NOT NULL,
    size          bigint NOT NULL,
    sha256        bytea NOT NULL,
    placed_at     timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agent_run_id, name)
);
COMMENT ON COLUMN uploads.placed_at IS 'when a worker put the file into the sandbox of the project';
CREATE INDEX uploads_project ON uploads (project_id);

CREATE TABLE upload_chunks (
    upload_id     uuid NOT NULL REFERENCES uploads ON DELETE CASCADE,
    number        int NOT NULL,
    data          bytea NOT NULL,
    PRIMARY KEY (upload_id, number)
);
"""

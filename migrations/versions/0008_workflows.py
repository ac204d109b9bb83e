"""workflows, their versions, executions and steps; how long a run was set aside to wait"""

from migrations.sql import execute

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE TABLE workflows (
    workflow_id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id          uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    project_id          uuid REFERENCES projects ON DELETE CASCADE,
    agent_id            uuid,
    name                text NOT NULL,
    description         text NOT NULL DEFAULT '',
    state               text NOT NULL DEFAULT 'DRAFT' CHECK (state IN ('DRAFT', 'ACTIVE', 'PAUSED')),
    current_version_id  uuid NOT NULL,
    version             int NOT NULL DEFAULT 1,
    created_by          uuid,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN workflows.project_id IS 'where its executions run; none: each has a project of its own';
COMMENT ON COLUMN workflows.agent_id IS 'no reference: an execution without the agent that was chosen must not begin';
COMMENT ON COLUMN workflows.version IS 'the number of its newest version, which is the current one';
CREATE INDEX workflows_account ON workflows (account_id, created_at DESC, workflow_id DESC);
CREATE INDEX workflows_current_version ON workflows (current_version_id);
CREATE INDEX workflows_project ON workflows (project_id) WHERE project_id IS NOT NULL;

CREATE TABLE workflow_versions (
    version_id      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workflow_id     uuid NOT NULL REFERENCES workflows ON DELETE CASCADE,
    version_number  int NOT NULL,
    definition      jsonb NOT NULL,
    created_by      uuid,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workflow_id, version_number)
);
ALTER TABLE workflows ADD FOREIGN KEY (current_version_id)
    REFERENCES workflow_versions (version_id) DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE workflow_executions (
    execution_id   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workflow_id    uuid NOT NULL REFERENCES workflows ON DELETE CASCADE,
    version_id     uuid NOT NULL REFERENCES workflow_versions ON DELETE CASCADE,
    agent_run_id   uuid UNIQUE REFERENCES agent_runs ON DELETE CASCADE,
    deterministic  boolean NOT NULL DEFAULT true,
    variables      jsonb NOT NULL DEFAULT '{}',
    triggered_by   text NOT NULL DEFAULT 'MANUAL',
    created_by     uuid,
    created_at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN workflow_executions.agent_run_id IS 'how it stands is in that row; none until a worker picks it up';
CREATE INDEX workflow_executions_workflow
    ON workflow_executions (workflow_id, created_at DESC, execution_id DESC);
CREATE INDEX workflow_executions_version ON workflow_executions (version_id);

CREATE TABLE workflow_steps (
    execution_id  uuid NOT NULL REFERENCES workflow_executions ON DELETE CASCADE,
    step_id       text NOT NULL,
    visit         text NOT NULL,
    position      bigint GENERATED ALWAYS AS IDENTITY,
    status        text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'completed', 'failed')),
    tries         int NOT NULL DEFAULT 0,
    inputs        jsonb NOT NULL DEFAULT '{}',
    output        jsonb,
    sets          jsonb NOT NULL DEFAULT '{}',
    usage         jsonb NOT NULL DEFAULT '{}',
    error         text,
    wake_at       timestamptz,
    finished      int,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    completed_at  timestamptz,
    PRIMARY KEY (execution_id, step_id, visit)
);
COMMENT ON COLUMN workflow_steps.visit IS 'which time it is: 0, or the numbers of the iterations that it is inside of';
COMMENT ON COLUMN workflow_steps.tries IS 'how often it failed so far';
COMMENT ON COLUMN workflow_steps.sets IS 'the variables that it gave new values';
COMMENT ON COLUMN workflow_steps.finished IS 'the order in which steps ended, which later values depend on';
CREATE INDEX workflow_steps_position ON workflow_steps (execution_id, position);

ALTER TABLE agent_runs ADD COLUMN parked_at timestamptz, ADD COLUMN waited interval NOT NULL DEFAULT '0';
COMMENT ON COLUMN agent_runs.parked_at IS 'since when a run that has begun waits for its not_before';
COMMENT ON COLUMN agent_runs.waited IS 'how long it was set aside so; no time of work';
"""

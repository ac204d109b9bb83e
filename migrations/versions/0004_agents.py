"""agents that are deleted let go of their runs and messages without reading all of them"""

from migrations.sql import execute

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE INDEX agent_runs_agent ON agent_runs (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX agent_runs_agent_version ON agent_runs (agent_version_id) WHERE agent_version_id IS NOT NULL;
CREATE INDEX messages_agent ON messages (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX messages_agent_version ON messages (agent_version_id) WHERE agent_version_id IS NOT NULL;
CREATE INDEX agents_current_version ON agents (current_version_id);
COMMENT ON COLUMN agent_versions.custom_mcps IS 'secrets in it are {"sealed": token}: see services/agent_secrets.py';
COMMENT ON COLUMN agent_versions.configured_mcps IS 'secrets in it are {"sealed": token}';
"""

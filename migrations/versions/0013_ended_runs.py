"""how many runs have ended is counted along an index of their own"""

from migrations.sql import execute

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute("CREATE INDEX agent_runs_ended ON agent_runs (completed_at, status) WHERE completed_at IS NOT NULL;")

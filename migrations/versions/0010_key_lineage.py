"""API keys that were made with a key end with it"""

from migrations.sql import execute

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
ALTER TABLE api_keys ADD COLUMN made_with uuid REFERENCES api_keys ON DELETE CASCADE;
COMMENT ON COLUMN api_keys.made_with IS 'the key that made it: it ends no later than that; null when a person made it';
CREATE INDEX api_keys_made_with ON api_keys (made_with) WHERE made_with IS NOT NULL;
"""

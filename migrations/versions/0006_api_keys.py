"""API keys of accounts"""

from migrations.sql import execute

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
CREATE TABLE api_keys (
    key_id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id    uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    created_by    uuid NOT NULL,
    public_key    text NOT NULL UNIQUE,
    secret_hash   bytea NOT NULL,
    title         text NOT NULL,
    description   text NOT NULL DEFAULT '',
    scopes        text[] NOT NULL CHECK (scopes <@ ARRAY['runs:read', 'runs:write', 'admin'] AND scopes <> '{}'),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    last_used_at  timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN api_keys.secret_hash IS 'HMAC-SHA256 of the secret under API_KEY_PEPPER';
COMMENT ON COLUMN api_keys.created_by IS 'the person it stands for: it may do no more than they, while they belong';
CREATE INDEX api_keys_account ON api_keys (account_id, created_at DESC, key_id DESC);
"""

"""credits: tiers, balances, what is reserved for calls under way, and the ledger"""

from migrations.sql import execute

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute(SCHEMA)


SCHEMA = """
ALTER TABLE accounts ADD COLUMN tier text;
COMMENT ON COLUMN accounts.tier IS 'one of BILLING_TIERS; null: BILLING_DEFAULT_TIER';

CREATE TABLE credit_balances (
    account_id    uuid PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    balance       bigint NOT NULL DEFAULT 0,
    reserved      bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    updated_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
COMMENT ON TABLE credit_balances IS 'in micro-credits: balance is the sum of the ledger, reserved that of the reserves';

CREATE TABLE credit_reserves (
    agent_run_id  uuid PRIMARY KEY,
    account_id    uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    attempt       int NOT NULL,
    call_id       uuid NOT NULL,
    amount        bigint NOT NULL CHECK (amount >= 0),
    model_name    text NOT NULL,
    prompt_tokens bigint NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE credit_reserves IS 'the model call that a run is waiting for; a run makes one at a time';
COMMENT ON COLUMN credit_reserves.agent_run_id IS 'no reference: what a deleted run had reserved is given back first';
COMMENT ON COLUMN credit_reserves.prompt_tokens IS 'about how many were sent, should nobody ever count them';

CREATE TABLE credit_ledger (
    entry_id      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id    uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    kind          text NOT NULL CHECK (kind IN ('grant', 'debit')),
    amount        bigint NOT NULL CHECK (kind <> 'debit' OR amount <= 0),
    note          text NOT NULL DEFAULT '',
    call_id       uuid UNIQUE CHECK ((call_id IS NOT NULL) = (kind = 'debit')),
    message_id    uuid,
    agent_run_id  uuid,
    thread_id     uuid,
    project_id    uuid,
    model_name    text,
    usage         jsonb NOT NULL DEFAULT '{}',
    estimated     boolean NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN credit_ledger.call_id IS 'the model call: what makes a usage billed once';
COMMENT ON COLUMN credit_ledger.message_id IS 'no reference, like its neighbours: a bill outlives what it is for';
COMMENT ON COLUMN credit_ledger.estimated IS 'the call was cut off: no provider counted its tokens';
CREATE INDEX credit_ledger_account ON credit_ledger (account_id, created_at DESC, entry_id DESC);
"""

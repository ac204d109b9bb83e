"""Local mode: whoever has this installation may run what it can reach."""

from uuid import UUID

from services.billing.gate import Verdict
from services.postgres import Executor

VERDICT = Verdict(
    allowed=True,
    message="Billing is off: BILLING=local.",
    subscription={"plan_name": "local", "price_id": "local", "minutes_limit": "no limit"},
)


class LocalGate:
    async def may_run(self, conn: Executor, account_id: UUID, model_name: str) -> Verdict:
        return VERDICT

"""Local mode: whoever has this installation may run what it can reach."""

from collections.abc import Mapping
from uuid import UUID

from services.billing.calls import Charge, ModelCall
from services.billing.gate import Offer, Plan, Verdict
from services.postgres import Executor
from services.runs.fence import Fence

PLAN = Plan("local", {"plan_name": "local", "price_id": "local", "minutes_limit": "no limit"})
VERDICT = Verdict(allowed=True, message="Billing is off: BILLING=local.", subscription=PLAN.subscription)
OFFER = Offer()


class LocalGate:
    """Nothing is asked and nothing is written."""

    bills = False

    async def plan(self, conn: Executor, account_id: UUID) -> Plan:
        return PLAN

    def offer(self, plan: Plan, model_name: str) -> Offer:
        return OFFER

    async def may_run(self, conn: Executor, account_id: UUID, model_name: str) -> Verdict:
        return VERDICT

    async def reserve(self, conn: Executor, fence: Fence, call: ModelCall) -> Verdict:
        return VERDICT

    def charge(self, call: ModelCall, usage: Mapping[str, int] | None, answered: int) -> Charge | None:
        return None

    async def settle(self, conn: Executor, fence: Fence, call: ModelCall, charge: Charge | None) -> None:
        return None

    async def unsettled(self, conn: Executor, run_id: UUID) -> ModelCall | None:
        return None

"""Credits: an account runs as long as it has some, with the models of its tier."""

from collections.abc import Mapping
from uuid import UUID

import asyncpg

from services.billing import ledger, prices, reserves
from services.billing.calls import Charge, ModelCall
from services.billing.gate import Offer, Plan, Verdict
from services.billing.ledger import Standing
from services.postgres import Executor
from services.runs.fence import Fence, FenceLost
from services.settings import BillingSettings, Price, Tier

MARGIN = 1.5
"""How far a prompt may be underestimated without costing more than was reserved for it."""
NOT_IN_PLAN = "{} is not part of your plan."
NOT_SOLD = "{} has no price here, so it cannot be used."
USED_UP = "The credits of this account are used up."
HELD = "The credits of this account are reserved for other calls that are under way."
ALLOWED = Verdict(allowed=True)


class CreditsGate:
    bills = True

    def __init__(self, settings: BillingSettings) -> None:
        self.settings = settings

    async def plan(self, conn: Executor, account_id: UUID) -> Plan:
        return self.plan_of(await ledger.standing(conn, account_id))

    def plan_of(self, standing: Standing) -> Plan:
        name, tier = self.tier(standing.tier)
        shown = {"plan_name": name, "price_id": name, "minutes_limit": "no limit", **standing.shown}
        return Plan(name, shown, tier.models)

    def tier(self, name: str | None) -> tuple[str, Tier]:
        """One that the configuration does not know any more is the default."""
        known = name if name in self.settings.tiers else self.settings.default_tier
        return known, self.settings.tiers[known]

    def price(self, model_name: str) -> Price | None:
        return prices.price_of(self.settings.prices, model_name)

    def offer(self, plan: Plan, model_name: str) -> Offer:
        price = self.price(model_name)
        if price is None:
            return Offer(available=False)
        if prices.allowed(plan.models, model_name):
            return Offer(price=price)
        others = any(prices.allowed(tier.models, model_name) for tier in self.settings.tiers.values())
        return Offer(available=False, in_other_tier=others, price=price)

    async def may_run(self, conn: Executor, account_id: UUID, model_name: str) -> Verdict:
        standing = await ledger.standing(conn, account_id)
        plan = self.plan_of(standing)
        offer = self.offer(plan, model_name)
        if not offer.available:
            why = (NOT_IN_PLAN if offer.price else NOT_SOLD).format(model_name)
            return Verdict(False, why, plan.subscription, allowed_models=plan.models)
        if standing.balance <= 0:
            return Verdict(False, USED_UP, plan.subscription)
        return Verdict(True, subscription=plan.subscription)

    async def reserve(self, conn: Executor, fence: Fence, call: ModelCall) -> Verdict:
        price = self.price(call.model_name)
        if price is None:
            return Verdict(False, NOT_SOLD.format(call.model_name))
        amount = prices.most(price, int(call.prompt_tokens * MARGIN), call.most_answered)
        try:
            reserved = await reserves.reserve(conn, fence, call, amount)
        except asyncpg.UniqueViolationError:  # an earlier try was committed meanwhile: now it is seen
            reserved = await reserves.reserve(conn, fence, call, amount)
        if reserved is None:
            raise FenceLost(str(fence.run_id))
        if not prices.allowed(self.tier(reserved.tier)[1].models, call.model_name):
            await self.settle(conn, fence, call, None)
            return Verdict(False, NOT_IN_PLAN.format(call.model_name))
        if reserved.taken:
            return ALLOWED
        return Verdict(False, HELD, passing=True) if reserved.balance > 0 else Verdict(False, USED_UP)

    def charge(self, call: ModelCall, usage: Mapping[str, int] | None, answered: int) -> Charge | None:
        if call.failed:
            return None
        said = call.answered + answered
        about = {"prompt_tokens": call.prompt_tokens, "completion_tokens": said}
        counted = usage or {**about, "total_tokens": sum(about.values())}
        price = self.price(call.model_name)
        cost = prices.cost(price, counted) if price else 0
        return Charge(call.call_id, call.model_name, counted, cost, estimated=not usage)

    async def settle(self, conn: Executor, fence: Fence, call: ModelCall, charge: Charge | None) -> None:
        if not await reserves.settle(conn, fence, call, charge):
            raise FenceLost(str(fence.run_id))

    async def unsettled(self, conn: Executor, run_id: UUID) -> ModelCall | None:
        return await reserves.open_call(conn, run_id)

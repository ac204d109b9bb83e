"""Whether the caller may run, with which models, and what the runs of the account cost."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from agent import catalog
from api.deps import CallerDep, PoolDep, ResourcesDep
from api.paging import MAX_ROWS, LimitQuery
from services.billing import ledger
from services.billing.gate import Offer
from services.billing.ledger import Entry
from services.billing.prices import in_credits
from services.settings import Price

router = APIRouter(prefix="/billing", tags=["billing"])

PageFromZero = Annotated[int, Query(ge=0, le=1_000_000)]


class Status(BaseModel):
    can_run: bool
    message: str
    subscription: dict[str, Any]


class ModelOut(BaseModel):
    """`id` is what a start takes as `model_name`; `short_name` another name for it, where there is one.

    Costs are credits for a million tokens, null where nothing is billed.
    """

    id: str
    display_name: str
    short_name: str
    requires_subscription: bool = False
    is_available: bool = True
    input_cost_per_million_tokens: float | None = None
    cached_input_cost_per_million_tokens: float | None = None
    output_cost_per_million_tokens: float | None = None


class Models(BaseModel):
    models: list[ModelOut]
    subscription_tier: str
    total_models: int


class LoggedCall(BaseModel):
    usage: dict[str, int]
    model: str


class UsageLog(BaseModel):
    """One call of a model. `estimated_cost` is what it cost in credits, the name is that of old frontends.

    `cost_micros`: the same in millionths, exact. `estimated`: it was cut off, and nobody counted its tokens.
    """

    message_id: UUID | None
    thread_id: UUID | None
    project_id: UUID | None
    agent_run_id: UUID | None
    created_at: datetime
    content: LoggedCall
    total_tokens: int
    estimated_cost: float
    cost_micros: int
    estimated: bool


class UsageLogs(BaseModel):
    logs: list[UsageLog]
    has_more: bool


@router.get("/check-status")
async def check_status(caller: CallerDep, resources: ResourcesDep) -> Status:
    model = catalog.default_model(resources.settings)
    verdict = await resources.gate.may_run(resources.pool, caller.account_id, model)
    return Status(can_run=verdict.allowed, message=verdict.message, subscription=verdict.subscription)


@router.get("/available-models")
async def available_models(caller: CallerDep, resources: ResourcesDep) -> Models:
    """The models that are known by name and can be reached with the keys of this installation; others may be too."""
    gate = resources.gate
    plan = await gate.plan(resources.pool, caller.account_id)
    offered = catalog.offered(resources.settings)
    models = [shown(name, short, gate.offer(plan, name)) for name, short in offered]
    return Models(models=models, subscription_tier=plan.tier, total_models=len(models))


def shown(name: str, short: str, offer: Offer) -> ModelOut:
    return ModelOut(
        id=name,
        display_name=name.rpartition("/")[2],
        short_name=short,
        requires_subscription=offer.in_other_tier,
        is_available=offer.available,
        **costs(offer.price),
    )


def costs(price: Price | None) -> dict[str, float]:
    if price is None:
        return {}
    cached = price.input if price.cached_input is None else price.cached_input
    each = {"input": price.input, "cached_input": cached, "output": price.output}
    return {f"{name}_cost_per_million_tokens": float(cost) for name, cost in each.items()}


@router.get("/usage-logs")
async def usage_logs(
    caller: CallerDep, pool: PoolDep, page: PageFromZero = 0, items_per_page: LimitQuery = MAX_ROWS
) -> UsageLogs:
    """What calls of models cost, newest first; pages count from 0, as existing frontends ask for them."""
    entries, more = await ledger.page(
        pool, caller.account_id, limit=items_per_page, offset=page * items_per_page, kinds=("debit",)
    )
    return UsageLogs(logs=[logged(entry) for entry in entries], has_more=more)


def logged(entry: Entry) -> UsageLog:
    usage = {"prompt_tokens": 0, "completion_tokens": 0, **entry.usage}
    return UsageLog(
        message_id=entry.message_id,
        thread_id=entry.thread_id,
        project_id=entry.project_id,
        agent_run_id=entry.agent_run_id,
        created_at=entry.created_at,
        content=LoggedCall(usage=usage, model=entry.model_name or ""),
        total_tokens=usage.get("total_tokens", usage["prompt_tokens"] + usage["completion_tokens"]),
        estimated_cost=in_credits(-entry.amount),
        cost_micros=-entry.amount,
        estimated=entry.estimated,
    )

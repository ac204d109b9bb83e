"""Whether the caller may run, and with which models."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from agent import catalog
from api.deps import CallerDep, ResourcesDep

router = APIRouter(prefix="/billing", tags=["billing"])


class Status(BaseModel):
    can_run: bool
    message: str
    subscription: dict[str, Any]


class ModelOut(BaseModel):
    """`id` is what a start takes as `model_name`; `short_name` another name for it, where there is one."""

    id: str
    display_name: str
    short_name: str
    requires_subscription: bool = False
    is_available: bool = True


class Models(BaseModel):
    models: list[ModelOut]
    subscription_tier: str
    total_models: int


@router.get("/check-status")
async def check_status(caller: CallerDep, resources: ResourcesDep) -> Status:
    model = catalog.default_model(resources.settings)
    verdict = await resources.gate.may_run(resources.pool, caller.account_id, model)
    return Status(can_run=verdict.allowed, message=verdict.message, subscription=verdict.subscription)


@router.get("/available-models")
async def available_models(caller: CallerDep, resources: ResourcesDep) -> Models:
    """The models that are known by name and can be reached with the keys of this installation; others may be too."""
    default = catalog.default_model(resources.settings)
    verdict = await resources.gate.may_run(resources.pool, caller.account_id, default)
    allowed = verdict.allowed_models
    models = [
        ModelOut(
            id=name,
            display_name=name.rpartition("/")[2],
            short_name=short,
            is_available=allowed is None or name in allowed,
        )
        for name, short in catalog.offered(resources.settings)
    ]
    tier = str(verdict.subscription.get("plan_name", ""))
    return Models(models=models, subscription_tier=tier, total_models=len(models))

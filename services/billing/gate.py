"""The gate: whether an account may run, asked at each start and before each model call, and what a call costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from services.billing.calls import Charge, ModelCall
from services.errors import Forbidden, PaymentRequired
from services.postgres import Executor
from services.runs.fence import Fence
from services.settings import Price


@dataclass(frozen=True, slots=True)
class Verdict:
    """`message` is for the user. A refusal with `allowed_models` is about the model only; one that is `passing` ends
    when other calls of the account do: ask again a little later.
    """

    allowed: bool
    message: str = "OK"
    subscription: dict[str, Any] = field(default_factory=dict)
    allowed_models: tuple[str, ...] | None = None
    passing: bool = False

    def enforce(self) -> None:
        """Raises: PaymentRequired `{message, subscription}`; Forbidden `{message, allowed_models}`."""
        if self.allowed:
            return
        if self.allowed_models is not None:
            raise Forbidden({"message": self.message, "allowed_models": list(self.allowed_models)})
        raise PaymentRequired({"message": self.message, "subscription": self.subscription})


@dataclass(frozen=True, slots=True)
class Offer:
    """Whether an account may use a model, whether another tier could, and what it costs."""

    available: bool = True
    in_other_tier: bool = False
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an account may use: `models` as a tier names them. `subscription` is what clients are shown of it."""

    tier: str
    subscription: dict[str, Any]
    models: tuple[str, ...] = ("*",)


class Gate(Protocol):
    """Another kind of billing is another gate, chosen by BILLING; it is asked often, so it answers fast.

    Raises, each of them: what the store raises while it is away.
    """

    bills: bool
    """Whether calls of models are to be settled at all."""

    async def plan(self, conn: Executor, account_id: UUID) -> Plan: ...

    def offer(self, plan: Plan, model_name: str) -> Offer: ...

    async def may_run(self, conn: Executor, account_id: UUID, model_name: str) -> Verdict:
        """Whether a run may start."""
        ...

    async def reserve(self, conn: Executor, fence: Fence, call: ModelCall) -> Verdict:
        """Whether a run may make this call; what it may cost is set aside until it is settled. Raises: FenceLost."""
        ...

    def charge(self, call: ModelCall, usage: Mapping[str, int] | None, answered: int) -> Charge | None:
        """What to settle the call with; without a provider's `usage` by estimate, its answer having so many tokens."""
        ...

    async def settle(self, conn: Executor, fence: Fence, call: ModelCall, charge: Charge | None) -> None:
        """End a call that no message was stored for; a repetition changes nothing. Raises: FenceLost."""
        ...

    async def unsettled(self, conn: Executor, run_id: UUID) -> ModelCall | None:
        """The call that a run had not settled when its driver was lost."""
        ...

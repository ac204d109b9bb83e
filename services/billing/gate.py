"""The gate: whether an account may run, asked at each start and before each model call."""

from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from services.errors import Forbidden, PaymentRequired
from services.postgres import Executor


@dataclass(frozen=True, slots=True)
class Verdict:
    """`message` is for the user. A refusal with `allowed_models` is about the model only."""

    allowed: bool
    message: str = "OK"
    subscription: dict[str, Any] = field(default_factory=dict)
    allowed_models: tuple[str, ...] | None = None

    def enforce(self) -> None:
        """Raises: PaymentRequired `{message, subscription}`; Forbidden `{message, allowed_models}`."""
        if self.allowed:
            return
        if self.allowed_models is not None:
            raise Forbidden({"message": self.message, "allowed_models": list(self.allowed_models)})
        raise PaymentRequired({"message": self.message, "subscription": self.subscription})


class Gate(Protocol):
    """Another kind of billing is another gate, chosen by BILLING; it is asked often, so it answers fast."""

    async def may_run(self, conn: Executor, account_id: UUID, model_name: str) -> Verdict:
        """Raises: what the store raises while it is away."""
        ...

"""A call of a model, as it is billed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID, uuid4


@dataclass(slots=True)
class ModelCall:
    """`prompt_tokens` and `most_answered`: about how many are sent, and how many the answer may have at most."""

    model_name: str
    prompt_tokens: int
    most_answered: int = 0
    call_id: UUID = field(default_factory=uuid4)
    answered: int = 0
    """About how many tokens of its answer are stored already, while more is to come."""
    failed: bool = False
    """It costs nothing, whatever it said."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What a call costs, in micro-credits. `estimated`: no provider counted the tokens in `usage` to the end."""

    call_id: UUID
    model_name: str
    usage: Mapping[str, int]
    cost: int
    estimated: bool = False

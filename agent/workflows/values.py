"""What expressions see of an execution: its variables, what its steps gave, and where in a loop it is."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from agent.workflows.bounds import ExpressionFailed
from agent.workflows.expressions import Scope, own
from services.fields import finite, shallow
from services.postgres import dump_json
from services.workflow_steps import Visit

MAX_OUTPUT_BYTES = 256 * 1024
MAX_HELD_BYTES = 2 * 1024 * 1024
"""Of all variables and newest outputs together; expressions over them stay fast."""


class TooLarge(Exception):
    """A value that is not kept; the text says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a step stands: in which iterations, and with which item."""

    iterations: tuple[int, ...] = ()
    item: Any = None

    @property
    def visit(self) -> str:
        """Which visit of a step this is, the same in every attempt."""
        return ".".join(map(str, self.iterations)) or "0"

    def inside(self, iteration: int, item: Any) -> "Frame":
        return replace(self, iterations=(*self.iterations, iteration), item=item)


@dataclass(slots=True)
class Values:
    execution: dict[str, Any]
    variables: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    def scope(self, frame: Frame) -> Scope:
        return {
            "variables": self.variables,
            "steps": self.steps,
            "item": frame.item,
            "index": frame.iterations[-1] if frame.iterations else None,
            "error": self.error,
            "execution": self.execution,
        }

    def take(self, visit: Visit) -> None:
        """Let what a visit has come to count from now on."""
        self.steps[visit.step_id] = {"status": visit.status, "output": visit.output, "error": visit.error}
        self.variables |= visit.sets
        if visit.status == "failed":
            self.error = {"step": visit.step_id, "message": visit.error}
        self.sizes |= sizes_of(visit.step_id, visit.output, visit.sets)

    def make_room(self, step_id: str, output: Any, sets: dict[str, Any]) -> None:
        """Raises: TooLarge for values that would be too many together."""
        if sum({**self.sizes, **sizes_of(step_id, output, sets)}.values()) > MAX_HELD_BYTES:
            raise TooLarge(f"the values of this execution would be more than {MAX_HELD_BYTES:,} bytes together")


def sizes_of(step_id: str, output: Any, sets: dict[str, Any]) -> dict[str, int]:
    named = {f"variable {name}": value for name, value in sets.items()}
    return {name: len(dump_json(value)) for name, value in {f"step {step_id}": output, **named}.items()}


def of_visits(execution: dict[str, Any], variables: dict[str, Any], visits: Iterable[Visit]) -> Values:
    """The values as they stood when the last of these visits ended."""
    values = Values(execution, dict(variables))
    for visit in sorted((each for each in visits if each.finished is not None), key=lambda each: each.finished or 0):
        values.take(visit)
    return values


def kept(value: Any) -> Any:
    """A value as it is kept: JSON that the stores take, not too large. Raises: TooLarge."""
    try:
        clean = finite(own(shallow(value)))
    except (ValueError, ExpressionFailed) as error:
        raise TooLarge(f"its output cannot be kept: {error}") from error
    if len(dump_json(clean)) > MAX_OUTPUT_BYTES:
        raise TooLarge(f"its output is larger than {MAX_OUTPUT_BYTES:,} bytes")
    return clean

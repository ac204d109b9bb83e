"""The fence: which attempt of a run may write."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Fence:
    """One attempt at one run by one instance; every append and every row write carries it."""

    run_id: UUID
    attempt: int
    instance_id: str

    @property
    def lock_value(self) -> str:
        return f"{self.instance_id}:{self.attempt}"


class FenceLost(Exception):
    """Another attempt owns the run now: stop writing."""

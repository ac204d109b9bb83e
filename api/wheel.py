"""Things that come round: each turn hands out those of one slot, and looks at no other."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Wheel(Generic[T]):
    def __init__(self, slots: int) -> None:
        self.slots: deque[set[T]] = deque(set() for _ in range(slots + 1))

    def add(self, item: T, turns: int) -> None:
        """To be handed out after so many turns, at most as many as there are slots."""
        self.slots[min(max(turns, 1), len(self.slots) - 1)].add(item)

    def discard(self, item: T) -> None:
        for slot in self.slots:
            slot.discard(item)

    def turn(self) -> set[T]:
        """Those that are due now."""
        self.slots.rotate(-1)
        due, self.slots[0] = self.slots[0], set()
        return due

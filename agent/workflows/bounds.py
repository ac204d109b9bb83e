"""What the value of an expression may take of a loop that all runs of a process share: work, size and time."""

import time

from services.fields import LARGEST_INTEGER

MAX_STEPS = 20_000
"""Visits of nodes of the expression; 10,000 take about 10 ms."""
MAX_BYTES = 4 * 1024 * 1024
"""Of anything on the way, written out."""
MAX_RESULT_BYTES = 256 * 1024
MAX_MADE_BYTES = 16 * 1024 * 1024
"""Of all that functions and expressions give while one value is worked out: nobody knows what of it is held."""
MAX_SECONDS = 0.5
"""Of this thread's own time: a step over large texts costs more than one."""


class ExpressionFailed(Exception):
    """An expression that has no value here; the text says why."""


class Budget:
    """What may be spent on one value, however many expressions it is made of: nothing else happens meanwhile."""

    def __init__(self) -> None:
        self.until = time.thread_time() + MAX_SECONDS
        self.made = 0

    def check_time(self) -> None:
        if time.thread_time() > self.until:
            raise ExpressionFailed(f"it takes longer than {MAX_SECONDS:g} seconds")

    def take(self, size: int) -> None:
        self.made += size
        if self.made > MAX_MADE_BYTES:
            raise ExpressionFailed(f"it makes more than {MAX_MADE_BYTES:,} bytes in all")
        self.check_time()


def bounded(size: int) -> None:
    if size > MAX_BYTES:
        raise ExpressionFailed(f"it makes more than {MAX_BYTES:,} bytes on its way")


def small(number: float) -> float:
    """Whole numbers are exact as long as they have 64 bits: they cannot grow for ever."""
    return number if isinstance(number, float) or abs(number) < LARGEST_INTEGER else float(number)

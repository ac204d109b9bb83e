"""Waiting in tests: for a condition, up to a deadline, never for a length of time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
PATIENT = 20.0
"""Seconds that a test waits for what takes a moment, when how long is not what it is about."""


async def eventually(
    look: Callable[[], T | Awaitable[T]], *, within: float = PATIENT, every: float = 0.02, says: str = ""
) -> T:
    """The first true value of `look()`; AssertionError when there is none within `within` seconds.

    The last look begins after the deadline: whoever was kept from looking for so long looks once more.
    """
    deadline = time.monotonic() + within
    while True:
        late = time.monotonic() >= deadline
        value = look()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert not late, says or f"{look} was not true within {within} s; last: {value!r}"
        await asyncio.sleep(every)

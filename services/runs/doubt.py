"""Whether a server answers, for those who could wait for it in vain."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from redis import exceptions

from services.redis import Unreachable

T = TypeVar("T")


class Doubt:
    """After a server did not answer, one caller at a time finds out, `seconds` apart; the others are told at once."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.ask_at: float | None = None

    def check(self) -> None:
        """Raises: redis ConnectionError while somebody else finds out."""
        if self.ask_at is None:
            return
        now = asyncio.get_running_loop().time()
        if now < self.ask_at:
            raise exceptions.ConnectionError(f"{self.name} was away a moment ago")
        self.ask_at = now + self.seconds

    async def learn(self, question: Awaitable[T]) -> T:
        """What the server answers, after `check`. Raises: redis errors when it does not."""
        try:
            answer = await question
        except Unreachable:
            self.ask_at = asyncio.get_running_loop().time() + self.seconds
            raise
        self.ask_at = None
        return answer

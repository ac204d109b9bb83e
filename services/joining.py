"""Questions that come in the same moments, answered by one call."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Joined(Generic[Q, A]):
    """What is asked while a call is under way goes into the next one."""

    def __init__(self, answer: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]) -> None:
        self.answer = answer
        self.asked: list[tuple[Q, asyncio.Future[A]]] = []
        self.task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Raises: what the call that it went into raised."""
        answered: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.asked.append((question, answered))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.answer_all(), name="joined questions")
        return await answered

    async def answer_all(self) -> None:
        while self.asked:
            asked, self.asked = self.asked, []
            try:
                answers = await self.answer([question for question, _ in asked])
            except Exception as error:  # noqa: BLE001 - whatever it is goes to whoever asked
                for _, answered in asked:
                    if not answered.done():
                        answered.set_exception(error)
                continue
            for (_, answered), answer in zip(asked, answers, strict=True):
                if not answered.done():
                    answered.set_result(answer)

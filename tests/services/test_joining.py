import asyncio
from collections.abc import Sequence

import pytest

from services.joining import Joined


class Doubler:
    """Answers once it may, and remembers what came together."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.called, self.may_answer = asyncio.Event(), asyncio.Event()

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(list(numbers))
        self.called.set()
        await self.may_answer.wait()
        if 13 in numbers:
            raise ValueError("unlucky")
        return [2 * number for number in numbers]


async def test_what_is_asked_at_once_is_answered_by_one_call() -> None:
    doubler = Doubler()
    doubler.may_answer.set()
    joined = Joined(doubler)
    assert await asyncio.gather(*map(joined.ask, range(10))) == [2 * number for number in range(10)]
    assert doubler.calls == [list(range(10))]


async def test_what_is_asked_during_a_call_goes_into_the_next() -> None:
    doubler = Doubler()
    joined = Joined(doubler)
    first = asyncio.create_task(joined.ask(1))
    await doubler.called.wait()
    others = [asyncio.create_task(joined.ask(number)) for number in (2, 3)]
    await asyncio.sleep(0)
    doubler.may_answer.set()
    assert await asyncio.gather(*others, first) == [4, 6, 2]
    assert doubler.calls == [[1], [2, 3]]


async def test_an_error_goes_to_those_who_asked_together_and_to_no_other() -> None:
    doubler = Doubler()
    joined = Joined(doubler)
    unlucky = asyncio.gather(joined.ask(1), joined.ask(13), return_exceptions=True)
    await doubler.called.wait()
    doubler.may_answer.set()
    assert await joined.ask(2) == 4
    assert [type(answer) for answer in await unlucky] == [ValueError, ValueError]


async def test_one_that_no_longer_waits_takes_nobodys_answer_away() -> None:
    doubler = Doubler()
    joined = Joined(doubler)
    gone, stays = asyncio.create_task(joined.ask(1)), asyncio.create_task(joined.ask(2))
    await doubler.called.wait()
    gone.cancel()
    doubler.may_answer.set()
    assert await stays == 4
    with pytest.raises(asyncio.CancelledError):
        await gone

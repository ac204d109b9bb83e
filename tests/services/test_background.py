import asyncio
from contextlib import suppress

from services.background import repeat, stop
from tests.waiting import PATIENT, eventually


async def test_a_loop_is_stopped_although_its_tick_swallows_the_cancellation() -> None:
    """What asyncio.wait_for of Python 3.11 does when its answer comes in the same moment."""
    begun, ticks = asyncio.Event(), 0

    async def tick() -> None:
        nonlocal ticks
        ticks += 1
        begun.set()
        swallowed = (asyncio.CancelledError,) if ticks == 1 else ()
        with suppress(*swallowed):
            await asyncio.Event().wait()

    loop = asyncio.create_task(repeat(tick))
    await begun.wait()
    async with asyncio.timeout(PATIENT):
        await stop([loop])
    assert loop.cancelled()


async def test_what_a_tick_raises_does_not_end_the_loop() -> None:
    ticks: list[int] = []

    async def tick() -> None:
        ticks.append(len(ticks))
        if len(ticks) == 1:
            raise ValueError("a bug in one tick")
        await asyncio.Event().wait()

    loop = asyncio.create_task(repeat(tick))
    await eventually(lambda: len(ticks) == 2)
    await stop([loop])
    assert loop.done()

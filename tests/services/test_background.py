import asyncio
from contextlib import suppress

from services.background import repeat


async def test_a_loop_ends_although_its_tick_swallows_the_cancellation() -> None:
    """What asyncio.wait_for of Python 3.11 does when its time is up in the same moment."""
    begun, ticks = asyncio.Event(), 0

    async def tick() -> None:
        nonlocal ticks
        ticks += 1
        begun.set()
        with suppress(asyncio.CancelledError if ticks == 1 else ()):
            await asyncio.Event().wait()

    loop = asyncio.create_task(repeat(tick))
    await begun.wait()
    loop.cancel()
    done, _ = await asyncio.wait([loop], timeout=2.5)
    loop.cancel()
    assert done, "whoever closes the process would wait for ever"


async def test_what_a_tick_raises_does_not_end_the_loop() -> None:
    ticks: list[int] = []

    async def tick() -> None:
        ticks.append(len(ticks))
        if len(ticks) == 1:
            raise ValueError("a bug in one tick")
        await asyncio.Event().wait()

    loop = asyncio.create_task(repeat(tick))
    async with asyncio.timeout(2.5):
        while len(ticks) < 2:
            await asyncio.sleep(0.02)
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop
    assert loop.done()

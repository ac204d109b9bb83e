import asyncio
from contextlib import suppress

import pytest

from services.gates import Gates


async def test_so_many_pass_at_a_time_in_their_order_and_other_names_beside_them() -> None:
    gates, passed, inside, go_on = Gates[str](2, 10.0), [], 0, asyncio.Event()

    async def pass_through(name: str, number: int) -> None:
        nonlocal inside
        async with gates.through(name):
            inside += 1
            passed.append((name, number))
            await go_on.wait()
            assert name == "b" or inside <= 3
            inside -= 1

    tasks = [asyncio.create_task(pass_through("a", number)) for number in range(4)]
    tasks.append(asyncio.create_task(pass_through("b", 0)))
    await asyncio.sleep(0)
    assert passed == [("a", 0), ("a", 1), ("b", 0)]
    go_on.set()
    await asyncio.gather(*tasks)
    assert [number for name, number in passed if name == "a"] == [0, 1, 2, 3]
    assert not gates.gates


async def test_whoever_waits_too_long_or_gives_up_leaves_nothing_behind() -> None:
    gates = Gates[str](1, 0.01)
    async with gates.through("a"):
        with pytest.raises(TimeoutError):
            async with gates.through("a"):
                raise AssertionError
        waiting = asyncio.create_task(gates.through("a").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    assert not gates.gates
    with pytest.raises(KeyError):
        async with gates.through("a"):
            raise KeyError
    assert not gates.gates

"""The commands where runs are spread over several Redis servers, one of which is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from services import settings as settings_module
from services.admin import runs
from services.admin.cli import main
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.private import Valkey, private_valkey
from tests.services.runs.seeds import make_run
from tests.services.runs.test_shards import run_on, spread


@pytest.fixture
async def servers() -> AsyncIterator[list[Valkey]]:
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(*(stack.enter_async_context(private_valkey()) for _ in range(2)))


@pytest.fixture
async def stores(settings: Settings, servers: list[Valkey]) -> AsyncIterator[Stores]:
    async with open_stores(spread(settings, servers)) as stores:
        yield stores


async def test_a_run_of_a_server_that_is_away_is_shown_and_stopped(
    stores: Stores, servers: list[Valkey], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_module, "load", lambda: stores.settings)
    monkeypatch.setattr(runs, "END_LOOKS", 3)
    away, there = await run_on(stores, "1"), await make_run(stores.pool)
    await servers[1].kill()
    for run in (away, there):
        assert await asyncio.to_thread(main, ["runs", "show", str(run.id)]) == 0
    assert "Redis server 1 does not answer" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["workers", "list"]) == 0
    assert await asyncio.to_thread(main, ["runs", "stop", str(away.id)]) == 0
    assert "1 stopped" in capsys.readouterr().out

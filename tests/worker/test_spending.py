"""The ledger against crashes: every usage is billed once, whatever dies where."""

import asyncio
import random
from collections import Counter
from unittest.mock import patch

import pytest

from agent import charges, thread_manager
from agent.llm import routing
from services.http import open_client
from services.postgres import Pool
from services.settings import Settings
from tests.worker.spending import Spenders

SEED = 20_261_128
CREDIT = 1_000_000


async def spent(
    pool: Pool, settings: Settings, *, accounts: int, runs: int, granted: tuple[int, int], within: float
) -> Counter[str]:
    """What became of the attempts; the books are checked. Credits that a reserve never gives back hang the runs."""
    async with open_client(settings) as http:
        spenders = Spenders(pool, http, settings, random.Random(SEED))
        with (
            patch.object(routing, "stream", spenders.scripted),
            patch.object(charges, "PASSING_SECONDS", 0.01),
            patch.object(thread_manager, "RETRY_SECONDS", 0.01),
        ):
            ids = await spenders.make_accounts(accounts, granted)
            async with asyncio.timeout(within):
                await spenders.all(ids, runs, at_once=12)
        await spenders.free()
        await spenders.check()
    return spenders.seen


async def test_runs_that_crash_anywhere_are_billed_for_each_usage_once(pool: Pool, settings: Settings) -> None:
    seen = await spent(pool, settings, accounts=2, runs=24, granted=(CREDIT, 3 * CREDIT), within=60)
    assert {"completed", "ended", "died"} <= set(seen), seen


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_thousand_runs_that_crash_anywhere_are_billed_for_each_usage_once(
    pool: Pool, settings: Settings
) -> None:
    seen = await spent(pool, settings, accounts=20, runs=1000, granted=(CREDIT // 10, 6 * CREDIT), within=600)
    every = {"completed", "failed", "stopped", "ended", "died", "cancelled", "overtaken", "handed over", "ghost lost"}
    assert every <= set(seen), seen
    assert min(seen["out of credit"], seen["stopped by a person"]) > 0, seen

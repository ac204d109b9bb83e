"""Faults at random: a short storm of what `./dev bench chaos` does at length."""

import pytest

from tests.faults.chaos import Plan, rage
from tests.faults.lab import Lab

SWIFT = ("worker SIGKILL", "worker SIGTERM", "API SIGKILL", "Redis FLUSHALL", "Redis kill -9", "Postgres restart")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "pairs", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one by one", "two at a time"]
)
async def test_nothing_is_lost_under_faults_at_random(lab: Lab, pairs: bool) -> None:
    """Of two faults the second comes a while after the first: its runs are to be live by then."""
    said: list[str] = []
    seconds = 30 if pairs else 6
    plan = Plan(8, readers=2, faults=3 - pairs, run_seconds=seconds, seed=7, pairs=pairs, gap_seconds=0, among=SWIFT)
    storm = await rage(lab, plan, said.append)
    assert storm.tally
    assert (storm.tally.runs, storm.tally.given_up) == (plan.runs, 0)
    assert len(said) == len(storm.blows) == plan.faults

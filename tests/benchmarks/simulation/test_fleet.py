import random
from collections.abc import Iterable
from dataclasses import replace
from heapq import heappop, heappush

import pytest

from tests.benchmarks.simulation.fleet import Fleet, Timing
from tests.benchmarks.simulation.scenarios import SCENARIOS, Site, at, deploy, host_dies, simulate
from tests.figures import percentile

AT_ONCE = Timing(pick_up=0.0, claim=0.0)
SITE = Site(runs=100, hosts=5, processes=2, slots=14, run_seconds=60.0, warm_up=200.0, after=200.0)


def first_come_first_served(schedule: Iterable[tuple[float, float]], servers: int) -> list[float]:
    """The wait of each, by the recursion of J. Kiefer and J. Wolfowitz (1955)."""
    free_at, waits = [0.0] * servers, []
    for moment, seconds in schedule:
        begins = max(heappop(free_at), moment)
        heappush(free_at, begins + seconds)
        waits.append(begins - moment)
    return waits


def test_waiting_is_as_long_as_queueing_theory_says() -> None:
    chance, moment, schedule = random.Random(1), 0.0, []
    for _ in range(5000):
        moment += chance.expovariate(9.0)
        schedule.append((moment, chance.expovariate(1.0)))
    fleet = Fleet(hosts=1, processes=2, slots=5, timing=AT_ONCE)
    fleet.env.process(fleet.arrivals(schedule, turn=1.0))
    fleet.env.run(until=moment + 100)
    waits = [run.waited for run in fleet.runs]
    assert max(waits) > 1
    assert waits == pytest.approx(first_come_first_served(schedule, 10))


def test_a_dead_workers_runs_go_on_between_the_patience_and_a_sweep_more() -> None:
    found = simulate(SITE, host_dies(None), Timing(), seed=1)
    assert len(found.gaps) > 10
    timing = Timing()
    assert min(found.gaps) >= timing.dead_after - timing.heartbeat
    assert max(found.gaps) <= timing.dead_after + 1.25 * timing.sweep + 1


def test_runs_that_are_handed_over_go_on_at_once() -> None:
    found = simulate(SITE, deploy(1), Timing(), seed=1)
    assert len(found.gaps) > 50
    assert percentile(found.gaps, 0.99) < 2.0


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_happens_every_run_ends_and_none_is_driven_twice(name: str) -> None:
    fleet = Fleet(SITE.hosts, SITE.processes, SITE.slots, Timing())
    arrivals = [one for one in SITE.schedule(1) if one[0] < 250]
    fleet.env.process(fleet.arrivals(arrivals, turn=SITE.turn))
    for steps in SCENARIOS[name](fleet, 150.0):
        fleet.env.process(steps)
    fleet.env.run(until=5000)
    assert len(fleet.runs) == len(arrivals)
    assert all(run.ended and len(run.claims) == len(run.lost) + 1 for run in fleet.runs)
    assert all(gap > 0 for run in fleet.runs for gap in run.gaps)


def test_too_few_slots_are_seen() -> None:
    enough = simulate(SITE, SCENARIOS["nothing happens"], Timing(), seed=1)
    scarce = simulate(replace(SITE, slots=9), SCENARIOS["nothing happens"], Timing(), seed=1)
    assert at(enough.waits, 0.99) < 0.1 < 5 < at(scarce.waits, 0.99)

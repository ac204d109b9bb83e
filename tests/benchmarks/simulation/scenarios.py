"""What is simulated: a load of so many runs on so many hosts, and one thing that befalls it."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.benchmarks.simulation.fleet import Fleet, Run, Steps, Timing
from tests.figures import percentile

WATCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Site:
    """`runs` at a time on average; a run takes `run_seconds` on average, in turns of `turn` seconds."""

    runs: int = 1000
    hosts: int = 5
    processes: int = 4
    slots: int = 63
    run_seconds: float = 300.0
    turn: float = 20.0
    warm_up: float = 1200.0
    after: float = 900.0

    def schedule(self, seed: int) -> Iterator[tuple[float, float]]:
        """Moments and lengths, both exponentially distributed."""
        chance, moment = random.Random(seed), 0.0
        while moment < self.warm_up + self.after:
            moment += chance.expovariate(self.runs / self.run_seconds)
            yield moment, chance.expovariate(1 / self.run_seconds)


Befall = Callable[[Fleet, float], Iterable[Steps]]
"""What happens to a fleet from a moment on."""


def nothing(fleet: Fleet, at: float) -> Iterable[Steps]:
    return ()


def host_dies(back_after: float | None) -> Befall:
    """All processes of one host are killed; they are there again after so many seconds."""

    def befall(fleet: Fleet, at: float) -> Iterable[Steps]:
        yield fleet.kill(at, [worker for worker in fleet.workers if worker.host == 0], back_after)

    return befall


def broker_away(seconds: float) -> Befall:
    def befall(fleet: Fleet, at: float) -> Iterable[Steps]:
        yield fleet.outage(at, seconds)

    return befall


def deploy(at_once: int) -> Befall:
    """A rolling restart, so many processes at a time."""

    def befall(fleet: Fleet, at: float) -> Iterable[Steps]:
        yield fleet.deploy(at, at_once)

    return befall


SCENARIOS: dict[str, Befall] = {
    "nothing happens": nothing,
    "a host dies, back after 5 min": host_dies(300.0),
    "RabbitMQ away for 2 min": broker_away(120.0),
    "deploy, one process at a time": deploy(1),
    "deploy, one host at a time": deploy(4),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds. `waits` are of the runs that were created after the moment, `gaps` of those that lost a driver."""

    waits: list[float]
    gaps: list[float]
    waiting: list[tuple[float, int]]
    """How many runs had no driver, by seconds since the moment."""

    @property
    def recovered(self) -> float:
        """When the last run that lost its driver had one again."""
        return max(self.gaps, default=0.0)


def simulate(site: Site, befall: Befall, timing: Timing, seed: int) -> Outcome:
    fleet = Fleet(site.hosts, site.processes, site.slots, timing, seed)
    fleet.env.process(fleet.arrivals(site.schedule(seed), site.turn))
    fleet.env.process(fleet.watch(WATCH_SECONDS))
    for steps in befall(fleet, site.warm_up):
        fleet.env.process(steps)
    fleet.env.run(until=site.warm_up + site.after)
    return outcome(fleet.runs, fleet.waiting, site.warm_up, fleet.env.now)


def outcome(runs: Iterable[Run], waiting: Iterable[tuple[float, int]], since: float, until: float) -> Outcome:
    """What is still waited for in the end counts as long as it was."""
    some = list(runs)
    waits = [(run.claims[0] if run.claims else until) - run.created for run in some if run.created >= since]
    gaps = [gap for run in some for gap in run.gaps if run.lost and run.lost[-1] >= since]
    gaps += [until - run.lost[-1] for run in some if len(run.lost) == len(run.claims) > 0]
    return Outcome(waits, gaps, [(moment - since, count) for moment, count in waiting if moment >= since - 10])


def at(seconds: list[float], share: float) -> float:
    return percentile(seconds, share) if seconds else 0.0

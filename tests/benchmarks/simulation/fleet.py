"""A fleet of workers in simulated time: a queue, slots, heartbeats, sweepers, and what befalls them.

Only the rules that decide who waits how long are modelled; seconds are those of the settings.
"""

import random
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from simpy import Environment, Interrupt
from simpy.events import Event, Process

SWEEPER_BATCH = 200
Steps = Generator[Event, Any, None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: the first five are settings, the rest was measured on an idle machine."""

    heartbeat: float = 5.0
    dead_after: float = 15.0
    sweep: float = 2.0
    resend: float = 5.0
    boot: float = 3.0
    pick_up: float = 0.02
    claim: float = 0.008
    """Processor time of a worker for one run's beginning: those of one process wait for each other."""
    hand_over: float = 0.2
    broker_back: float = 1.0
    """From a broker that is back to consumers that have connected again."""


@dataclass(slots=True)
class Run:
    number: int
    created: float
    left: float
    """Seconds of work that are to be done."""
    turn: float = 0.0
    """Seconds of one call of the model: what of it was not stored is done again."""
    claims: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    """When its worker died or let it go, for each time."""
    ended: float | None = None
    dead_at: float | None = None
    """When its driver counts as dead, while nobody drives it."""
    tried: float = 0.0
    """When a message for it was last sent, or tried."""

    @property
    def waited(self) -> float:
        return self.claims[0] - self.created

    @property
    def gaps(self) -> list[float]:
        """Seconds without a driver after each loss."""
        return [claimed - lost for lost, claimed in zip(self.lost, self.claims[1:], strict=False)]


@dataclass(slots=True, eq=False)
class Worker:
    """One process. `phase` is where in the heartbeat's interval it beats."""

    slots: int
    phase: float
    host: int = 0
    living: bool = True
    taking: bool = True
    busy_until: float = 0.0
    driving: dict[int, "Process"] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.slots - len(self.driving) if self.taking else 0


class Fleet:
    def __init__(self, hosts: int, processes: int, slots: int, timing: Timing, seed: int = 1) -> None:
        self.env, self.timing, self.chance = Environment(), timing, random.Random(seed)
        self.queue: deque[Run] = deque()
        self.unsent: deque[Run] = deque()
        """What was accepted while the broker was away."""
        self.broker_up = True
        self.runs: list[Run] = []
        self.dead: dict[int, Run] = {}
        self.waiting: list[tuple[float, int]] = []
        self.workers = [self.new_worker(slots, host) for host in range(hosts) for _ in range(processes)]

    def new_worker(self, slots: int, host: int) -> Worker:
        worker = Worker(slots, self.chance.uniform(0, self.timing.heartbeat), host)
        self.env.process(self.sweeping(worker))
        return worker

    # What happens to runs.

    def arrivals(self, schedule: Iterable[tuple[float, float]], turn: float) -> Steps:
        """Runs that are created at given moments and take so many seconds, in turns of `turn` seconds."""
        for moment, seconds in schedule:
            yield self.env.timeout(max(moment - self.env.now, 0))
            run = Run(len(self.runs), self.env.now, seconds, turn)
            self.runs.append(run)
            self.send(run)

    def send(self, run: Run) -> None:
        run.tried = self.env.now
        (self.queue if self.broker_up else self.unsent).append(run)
        self.deliver()

    def deliver(self) -> None:
        """The broker gives each message to a consumer with room: prefetch is the number of slots."""
        while self.queue and self.broker_up:
            worker = max(self.workers, key=lambda one: (one.free, self.chance.random()))
            if worker.free <= 0:
                return
            run = self.queue.popleft()
            worker.driving[run.number] = self.env.process(self.drive(worker, run))

    def drive(self, worker: Worker, run: Run) -> Steps:
        try:
            worker.busy_until = max(worker.busy_until, self.env.now) + self.timing.claim
            yield self.env.timeout(self.timing.pick_up + worker.busy_until - self.env.now)
            run.claims.append(self.env.now)
            yield self.env.timeout(run.left)
            run.ended = self.env.now
        except Interrupt as interrupt:
            self.lose(worker, run, handed_over=interrupt.cause == "handed over")
        worker.driving.pop(run.number, None)
        self.deliver()

    def lose(self, worker: Worker, run: Run, *, handed_over: bool) -> None:
        """Turns that are stored are not done again; a message that was not acked is delivered again."""
        claimed = len(run.claims) > len(run.lost)
        if claimed:
            run.left -= (self.env.now - run.claims[-1]) // run.turn * run.turn
            run.lost.append(self.env.now)
        if handed_over or not claimed:
            self.env.process(self.send_later(run, self.timing.hand_over if handed_over else 0.0))
            return
        since_beat = (self.env.now - worker.phase) % self.timing.heartbeat
        beat = max(self.env.now - since_beat, run.claims[-1])
        run.dead_at = beat + self.timing.dead_after
        self.dead[run.number] = run

    def send_later(self, run: Run, seconds: float) -> Steps:
        yield self.env.timeout(seconds)
        self.send(run)

    # What workers do besides.

    def sweeping(self, worker: Worker) -> Steps:
        """The sweeper of one process, for as long as it lives."""
        while worker.living:
            yield self.env.timeout(self.timing.sweep * self.chance.uniform(0.75, 1.25))
            if worker.living:
                self.sweep()

    def sweep(self) -> None:
        now = self.env.now
        found = [run for run in self.dead.values() if run.dead_at is not None and run.dead_at <= now]
        for run in found[:SWEEPER_BATCH]:
            if run.tried > now - self.timing.resend:
                continue
            del self.dead[run.number]
            self.send(run)

    # What befalls them.

    def kill(self, at: float, victims: Iterable[Worker], back_after: float | None) -> Steps:
        """SIGKILL at once; as many start again after `back_after` seconds (None: never)."""
        yield self.env.timeout(at - self.env.now)
        gone = list(victims)
        for worker in gone:
            worker.living = worker.taking = False
            self.interrupt(worker, "killed")
        if back_after is not None:
            yield self.env.timeout(back_after + self.timing.boot)
            for worker in gone:
                self.replace(worker)

    def deploy(self, at: float, at_once: int) -> Steps:
        """SIGTERM to so many processes at a time; the next when their successors are there."""
        yield self.env.timeout(at - self.env.now)
        everyone = list(self.workers)
        for first in range(0, len(everyone), at_once):
            leaving = everyone[first : first + at_once]
            for worker in leaving:
                worker.living = worker.taking = False
                self.interrupt(worker, "handed over")
            yield self.env.timeout(self.timing.hand_over + self.timing.boot)
            for worker in leaving:
                self.replace(worker)

    def outage(self, at: float, seconds: float) -> Steps:
        """The broker is away; live runs go on, what is accepted waits in its row."""
        yield self.env.timeout(at - self.env.now)
        self.broker_up = False
        yield self.env.timeout(seconds + self.timing.broker_back)
        self.broker_up = True
        self.queue.extend(self.unsent)
        self.unsent.clear()
        self.deliver()

    def interrupt(self, worker: Worker, cause: str) -> None:
        for driving in list(worker.driving.values()):
            driving.interrupt(cause)

    def replace(self, worker: Worker) -> None:
        self.workers[self.workers.index(worker)] = self.new_worker(worker.slots, worker.host)
        self.deliver()

    def watch(self, every: float) -> Steps:
        """Note how many runs wait for a driver."""
        while True:
            waiting = len(self.queue) + len(self.unsent) + len(self.dead)
            self.waiting.append((self.env.now, waiting))
            yield self.env.timeout(every)

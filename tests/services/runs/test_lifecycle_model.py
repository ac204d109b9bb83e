"""The life of runs in any order of events: several workers, readers, lost data, and deaths at any store command."""

import os
import sys
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition, HypothesisException
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.errors import Conflict
from services.postgres import transaction
from services.runs import keys, lifecycle, starting, stopping, store
from services.runs.fence import FenceLost
from services.runs.starting import NewRun
from services.settings import Settings
from tests.conftest import NO_LIMITS
from tests.services.runs.ledger import Record, Sight, tokens
from tests.services.runs.seeds import eventually
from tests.services.runs.world import LONG, Driver, Interrupted, Node, Viewer, World
from worker import endings
from worker.endings import Ended, Ending, HandedOver

T = TypeVar("T")

MOST_RUNS = 3
SOON = LONG / 2
"""Over after the next hour that passes."""

OUTCOME = ("status", "error", "completed_at", "attempt", "stop_requested_at", "usage")


@dataclass(frozen=True)
class Ref:
    """A run, by the name that the ledger gave it."""

    id: UUID
    name: str

    def __repr__(self) -> str:
        return f"<{self.name}>"


def one_of(name: str) -> st.SearchStrategy[Any]:
    """One of the machine's list `name`, as it is now."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, name)))


def owns(sight: Sight, driver: Driver) -> bool:
    """Whether the row is this attempt's, so that it may store and end."""
    return bool(sight.row["attempt"] == driver.run.attempt and sight.row["status"] == "running")


class Lifecycle(RuleBasedStateMachine):
    world: ClassVar[World]
    lives: ClassVar[int]
    broken: ClassVar[bool]
    """Whether any life has broken a promise, or anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.world.run(self.world.begin())

    def teardown(self) -> None:
        Lifecycle.lives += 1
        self.note(sys.exc_info()[1])
        try:
            if sys.exc_info()[0] is None:
                self.world.run(self.world.finish())
        except Exception as error:
            self.note(error)
            raise
        finally:
            self.world.run(self.world.clear())

    def note(self, error: BaseException | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, HypothesisException):
            Lifecycle.broken = True

    @property
    def nodes(self) -> list[Node]:
        return self.world.nodes

    @property
    def drivers(self) -> list[Driver]:
        return [driver for node in self.nodes for driver in node.drivers]

    @property
    def told_to_stop(self) -> list[Driver]:
        return [driver for driver in self.drivers if driver.held.stop_asked.is_set()]

    @property
    def ghosts(self) -> list[Driver]:
        return [driver for node in self.nodes for driver in node.ghosts]

    @property
    def runs(self) -> list[Ref]:
        return [Ref(run_id, record.name) for run_id, record in self.world.ledger.records.items()]

    @property
    def viewers(self) -> list[Viewer]:
        return self.world.viewers

    def record(self, run_id: UUID) -> Record:
        return self.world.ledger.records[run_id]

    def look(self, run_id: UUID) -> Sight:
        return self.world.run(self.world.sight(run_id))

    def do(self, node: Node, work: Awaitable[T]) -> T:
        """Raises: Interrupted, and what `work` raises."""
        return self.world.run(self.world.play(node, work))

    def attempt(self, node: Node, work: Awaitable[Any]) -> bool:
        """Do it as far as it comes; whether nothing came in between."""
        burned = node.fuse.burned
        try:
            self.do(node, work)
        except Interrupted:
            return False
        return node.fuse.burned == burned

    @invariant()
    def all_promises_hold(self) -> None:
        self.world.run(self.world.look())

    # Runs begin.

    @initialize()
    def begin_with_a_run(self) -> None:
        self.start(self.nodes[0], "stop", "now", announced=True)
        self.all_promises_hold()
        self.claim(self.nodes[0], self.runs[0], unclaimed=True)

    @precondition(lambda self: len(self.runs) < MOST_RUNS)
    @rule(
        node=one_of("nodes"),
        on_active=st.sampled_from(["queue", "stop", "reject"]),
        due=st.sampled_from(["now", "later", "now or never"]),
        announced=st.booleans(),
    )
    def start(self, node: Node, on_active: str, due: str, announced: bool) -> None:
        place, burned = self.world.place, node.fuse.burned
        new = NewRun(
            place.account_id,
            place.project_id,
            place.thread_id,
            "demo/lorem",
            on_active="queue" if on_active == "reject" and due == "later" else on_active,
            delay=SOON if due == "later" else None,
            expires_in=SOON if due == "now or never" else None,
        )

        async def start() -> None:
            async with transaction(node.stores.pool) as conn:
                started = await starting.start(conn, new, NO_LIMITS)
            if announced:
                await stopping.announce(node.stores, started.stopped)
                node.stores.dispatch.send_run(started.run)

        records = self.world.ledger.records.values()
        unfinished = [record for record in records if record.before and not record.before.final]
        try:
            self.do(node, start())
        except Conflict:
            assert new.on_active == "reject"
            assert unfinished
            return
        except Interrupted:
            return
        assert not (new.on_active == "reject" and unfinished), "a run was started beside another one"
        if new.on_active == "stop" and not new.delay:
            for record in unfinished:
                record.stop_promised = True
            self.all_promises_hold()
            going_on = [record.name for record in unfinished if record.before and not record.before.final]
            assert not (going_on and announced and node.fuse.burned == burned), f"{going_on} were stopped and go on"

    @precondition(lambda self: self.runs)
    @rule(node=one_of("nodes"), run=one_of("runs"), unclaimed=st.booleans())
    def claim(self, node: Node, run: Ref, unclaimed: bool) -> None:
        before = self.look(run.id)
        row = self.world.run(store.get(self.world.pool, run.id))
        assert row
        dead = self.world.run(lifecycle.is_abandoned(self.world.pool, run.id, self.world.settings.runs.dead_after))
        free = before.lock is None and (row.phase == "queued" or (row.phase == "running" and dead))
        if row.expires_at and not row.started_at:
            free = free and not self.expired(row.id)
        burned = node.fuse.burned
        try:
            driver = self.do(node, node.claim(run.id, unclaimed=unclaimed))
        except Interrupted:
            return
        assert free or not driver, f"{run.name} was claimed: it was {row.phase}, locked by {before.lock!r}"
        if not before.remembered:  # else its owner may take the lock again meanwhile
            assert driver or not free or node.fuse.burned > burned, f"{run.name} is {row.phase} and was not claimed"

    def expired(self, run_id: UUID) -> bool:
        return bool(
            self.world.run(self.world.pool.fetchval("SELECT expires_at <= now() FROM agent_runs WHERE id = $1", run_id))
        )

    # Attempts speak, store and end, whether they still own their run or not.

    @precondition(lambda self: self.drivers)
    @rule(driver=one_of("drivers"), count=st.integers(1, 3), as_far_as=st.sampled_from(["memory", "redis", "archive"]))
    def say(self, driver: Driver, count: int, as_far_as: str) -> None:
        before, node = self.look(driver.run.id), driver.node
        mine = owns(before, driver) and before.takes_from(driver.run.attempt)
        try:
            clean = self.attempt(node, driver.say(count))
        except FenceLost:
            assert not mine, f"{driver} was silenced"
            return
        if as_far_as == "memory":
            return
        clean = self.attempt(node, node.write()) and clean
        if as_far_as == "archive" and driver in node.drivers:
            clean = self.attempt(node, node.archive()) and clean
        if not clean:
            return
        after = self.look(driver.run.id)
        if mine:
            said = (driver.run.attempt, driver.said)
            assert after.listed, f"{driver} was not heard"
            assert tokens(after.listed[-1]) == [said], f"{driver} was not heard"
            assert as_far_as != "archive" or after.archived == after.listed, f"what {driver} said is not archived"
        else:
            assert driver.log.failure, f"{driver} has not been told that it lost its run"

    @precondition(lambda self: self.drivers)
    @rule(driver=one_of("drivers"))
    def store(self, driver: Driver) -> None:
        before, message_id = self.look(driver.run.id), driver.context.draft.message_id
        if not driver.context.draft.text:
            return
        try:
            clean = self.attempt(driver.node, driver.store())
        except FenceLost:
            clean = True
        self.all_promises_hold()
        stored = message_id in self.world.ledger.messages
        assert not stored or owns(before, driver), f"{driver} stored a message without its fence"
        assert stored or not clean or not owns(before, driver), f"{driver} could not store"

    @precondition(lambda self: self.drivers)
    @rule(driver=one_of("drivers"), status=st.sampled_from(["completed", "failed"]))
    def end(self, driver: Driver, status: str) -> None:
        self.conclude(driver, Ended(status, "It broke." if status == "failed" else None), status)

    @precondition(lambda self: self.drivers)
    @rule(driver=one_of("drivers"))
    def hand_over(self, driver: Driver) -> None:
        self.conclude(driver, HandedOver(), "queued")

    @precondition(lambda self: self.told_to_stop)
    @rule(driver=one_of("told_to_stop"))
    def heed(self, driver: Driver) -> None:
        async def commit() -> None:
            await endings.commit_stop(driver.attempt)

        if self.attempt(driver.node, commit()) and driver in driver.node.drivers:
            self.conclude(driver, Ended("stopped"), "stopped")

    def conclude(self, driver: Driver, ending: Ending, status: str) -> None:
        node, before, messages = driver.node, self.look(driver.run.id), set(self.world.ledger.messages)
        clean = self.attempt(node, driver.conclude(ending))
        after = self.look(driver.run.id)
        if not owns(before, driver):
            for column in OUTCOME:
                assert after.row[column] == before.row[column], f"{driver} changed {column} without its fence"
            assert set(self.world.ledger.messages) == messages, f"{driver} stored a message without its fence"
        elif clean and before.takes_from(driver.run.attempt) and not driver.log.failure:
            right = {"stopped"} if self.record(driver.run.id).stop_promised else {status}
            if driver.held.stop_asked.is_set():
                right.add("stopped")
            assert after.row["status"] in right, f"{driver} concluded {status}: {after.row['status']}"

    @precondition(lambda self: self.ghosts)
    @rule(driver=one_of("ghosts"), count=st.integers(1, 2))
    def speak_after_the_end(self, driver: Driver, count: int) -> None:
        """Work that does not let go although its attempt is over."""
        first = driver.said + 1
        try:
            self.attempt(driver.node, driver.say(count))
        except FenceLost:
            return
        self.attempt(driver.node, driver.node.write())
        self.all_promises_hold()
        said = {found for event in self.record(driver.run.id).shown.values() for found in tokens(event)}
        for number in range(first, driver.said + 1):
            assert (driver.run.attempt, number) not in said, f"{driver} was over and spoke"

    # Stops.

    @precondition(lambda self: self.runs)
    @rule(node=one_of("nodes"), run=one_of("runs"), survives=st.booleans())
    def stop(self, node: Node, run: Ref, survives: bool) -> None:
        """Somebody asks, or dies once the stop is committed."""
        before = self.look(run.id)

        async def ask() -> None:
            if survives:
                await stopping.request_stop(node.stores, run.id)
            else:
                await lifecycle.request_stops(node.stores.pool, [run.id])

        burned = node.fuse.burned
        try:
            self.do(node, ask())
        except Interrupted:
            return
        if not before.final:
            self.record(run.id).stop_promised = True
            after = self.look(run.id)
            assert after.final or not survives or node.fuse.burned > burned, f"{run.name} was stopped and goes on"

    @precondition(lambda self: self.drivers)
    @rule(driver=one_of("drivers"))
    def say_stop(self, driver: Driver) -> None:
        """A bare STOP on the run's channel, durable nowhere."""

        async def publish() -> None:
            await self.world.redis.publish(keys.control(driver.run.id), keys.STOP)
            await eventually(driver.held.stop_asked.is_set, says=f"{driver} did not hear STOP")

        self.world.run(publish())

    # What processes do by themselves.

    @rule(node=one_of("nodes"))
    def beat(self, node: Node) -> None:
        before = {driver: self.look(driver.run.id) for driver in node.drivers}
        if not self.attempt(node, node.beat()):
            return
        for driver, sight in before.items():
            if owns(sight, driver) and sight.takes_from(driver.run.attempt):
                after = self.look(driver.run.id)
                assert not driver.held.lost.is_set() or driver.log.failure, f"{driver} gave up"
                assert after.owner == driver.run.attempt, f"{driver} did not keep its lock"
            if sight.row["attempt"] > driver.run.attempt:
                assert driver.held.lost.is_set(), f"{driver} was not told that it lost its run"
                assert driver.log.failure
            if owns(sight, driver) and sight.row["stop_requested_at"]:
                assert driver.held.stop_asked.is_set(), f"{driver} was not told to stop"

    @rule(stalled=st.sets(st.sampled_from([0, 1])))
    def pass_an_hour(self, stalled: set[int]) -> None:
        asleep = [self.nodes[number] for number in sorted(stalled)]
        self.world.run(self.world.pass_an_hour(asleep))
        for node in self.nodes:
            if node not in asleep:
                self.attempt(node, node.beat())

    @rule(node=one_of("nodes"))
    def sweep(self, node: Node) -> None:
        self.attempt(node, node.sweep())

    @rule(node=one_of("nodes"))
    def archive(self, node: Node) -> None:
        self.attempt(node, node.archive())

    # Faults.

    @rule(
        node=one_of("nodes"),
        left=st.integers(1, 8),
        kind=st.sampled_from(["dies", "breaks"]),
        after=st.booleans(),
    )
    def light_fuse(self, node: Node, left: int, kind: Any, after: bool) -> None:
        node.fuse.light(left, kind, after=after)

    @rule(node=one_of("nodes"))
    def kill(self, node: Node) -> None:
        self.world.run(self.world.kill(node))

    @rule()
    def flush_redis(self) -> None:
        self.world.run(self.world.lose())

    @rule(lost=st.integers(0, 3))
    def restart_redis(self, lost: int) -> None:
        self.world.run(self.world.restart_redis(lost))

    @precondition(lambda self: self.runs)
    @rule(run=one_of("runs"), what=st.sampled_from([keys.lock, keys.responses]))
    def lose_key(self, run: Ref, what: Any) -> None:
        self.world.run(self.world.lose(what(run.id)))

    # Readers.

    @precondition(lambda self: self.runs)
    @rule(run=one_of("runs"), after=st.integers(-1, 5))
    def watch(self, run: Ref, after: int) -> None:
        viewer = Viewer(self.world, run.id, after)
        self.viewers.append(viewer)
        self.world.run(viewer.connect())

    @precondition(lambda self: self.viewers)
    @rule(viewer=one_of("viewers"))
    def drop(self, viewer: Viewer) -> None:
        self.world.run(viewer.drop())

    @precondition(lambda self: self.viewers)
    @rule(viewer=one_of("viewers"))
    def resume(self, viewer: Viewer) -> None:
        self.world.run(viewer.connect())


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    with World(settings) as world:
        Lifecycle.world = world
        world.run(world.clear())
        yield world


def explore(seed: int, examples: int, steps: int) -> None:
    """Try `examples` lives of up to `steps` steps; a failure names its seed and the shortest way to it.

    The world has clocks of its own, so now and then two lives that begin alike go different ways. Hypothesis ends
    there; if nothing was broken before, the rest of the lives begins anew with another seed.
    """
    Lifecycle.lives, Lifecycle.broken = 0, False
    while Lifecycle.lives < examples:
        try:
            explore_from(seed, examples - Lifecycle.lives, steps)
            return
        except FlakyStrategyDefinition:
            if Lifecycle.broken:
                raise
            seed += 1_000_000


def explore_from(seed: int, examples: int, steps: int) -> None:
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    run_state_machine_as_test(hypothesis.seed(seed)(Lifecycle), settings=settings)


@pytest.mark.timeout(600)
def test_every_promise_of_a_run_holds_in_any_order_of_events(world: World) -> None:
    explore(1, 25, 35)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_promise_of_a_run_holds_in_many_orders_of_events(world: World) -> None:
    explore(int(os.environ.get("LIFECYCLE_SEED", "2")), 150, 50)

"""Random definitions: checking and executing them never raises, and whatever is accepted ends within its bounds."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest.mock import patch
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, seed, settings
from pydantic import ValidationError

from agent.context import RunFailed, RunParked
from agent.workflows import acts, checking, engine
from agent.workflows.acts import Act
from agent.workflows.configs import CONFIGS
from agent.workflows.definition import Definition
from agent.workflows.engine import Engine
from agent.workflows.failures import StepFailed
from tests.agent.workflows.memory import Memory, memory_of
from tests.agent.workflows.random import definitions, json_values

MOST_ATTEMPTS = 3_000
MOST_VISITS = 300

endings: Counter[str] = Counter()
happened: Counter[str] = Counter()
"""Steps of each type that ended, error handlers that were taken, workers that died."""


class Died(BaseException):
    """The worker is gone; nothing of ours catches it."""


@dataclass
class World:
    """Where what is done works most of the time, and the same way every time; at some acts the worker dies once."""

    salt: bytes
    deaths: set[str] = field(default_factory=set)

    async def act(self, doing: Act) -> Any:
        await asyncio.sleep(0)
        chance = crc32(f"{doing.step.id} {doing.visit}".encode() + self.salt) % 10
        if chance < 2:
            raise StepFailed("bad luck", harmless=True)
        if chance == 2 and doing.key not in self.deaths:
            self.deaths.add(doing.key)
            raise Died
        return {"text": "done", "inputs": doing.inputs}


async def execute(definition: Definition, variables: dict[str, Any], world: World) -> str:
    """How it ends, with its worker dying every now and then."""
    memory = memory_of({}, variables)
    for attempt in range(MOST_ATTEMPTS):
        memory = Memory(memory.ctx, memory.execution, memory.visits, memory.finished)
        memory.now += timedelta(seconds=5 * attempt)
        try:
            await Engine(memory.ctx, definition, memory).run()
        except (RunParked, Died):
            continue
        except RunFailed:
            note(definition, memory, world)
            return "failed"
        note(definition, memory, world)
        return "completed"
    raise AssertionError("it goes on and on")


def note(definition: Definition, memory: Memory, world: World) -> None:
    assert len(memory.visits) <= MOST_VISITS
    happened["deaths"] += len(world.deaths)
    for visit in memory.visits.values():
        step = definition.by_id[visit.step_id]
        happened[step.type] += visit.finished is not None
        happened["handlers"] += visit.status == "failed" and (step.error_handler, visit.visit) in memory.visits


def check_and_execute(given_definition: dict[str, Any], variables: Any) -> None:
    try:
        definition = Definition.model_validate(given_definition)
    except ValidationError:
        endings["refused"] += 1
        return
    if found := checking.problems(definition):
        assert all(each.words for each in found)
        endings["refused"] += 1
        return
    known = variables if isinstance(variables, dict) else {"a": variables}
    world = World(repr(given_definition).encode())
    with (
        patch.dict(acts.ACTS, dict.fromkeys(acts.ACTS, world.act)),
        patch.object(acts, "is_repeatable", lambda ctx, step: step.told.repeatable is not False),
        patch.object(engine, "MAX_VISITS", MOST_VISITS),
    ):
        endings[asyncio.run(asyncio.wait_for(execute(definition, known, world), 60))] += 1


def test_random_definitions_are_refused_or_end_within_their_bounds() -> None:
    try_many(200, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(1, 6))
def test_ten_thousand_random_definitions_are_refused_or_end_within_their_bounds(part: int) -> None:
    try_many(2_000, part)


def try_many(count: int, part: int) -> None:
    """So many definitions, the same ones in every run."""
    endings.clear()
    happened.clear()
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    trial: Callable[..., None] = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=health
    )(seed(part)(given(definitions(), json_values)(check_and_execute)))
    trial()
    print(dict(endings), dict(happened))  # noqa: T201 - the measured figures
    assert endings.total() >= count
    assert min(endings[each] for each in ("refused", "completed", "failed")) >= count / 20, endings
    assert min(happened[each] for each in (*CONFIGS, "handlers", "deaths")) >= count / 20, happened

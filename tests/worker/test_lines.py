"""Every line about a run has the ids that it is found by, whichever message woke its worker."""

import logging
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from structlog.contextvars import clear_contextvars, get_contextvars

from services import origin
from services.log import run_words
from services.runs.stores import Stores
from tests.services.runs.seeds import age, make_run
from tests.worker.test_runner import drive
from tests.worker.test_sweeper import eventually_sent, queued_messages
from worker import sweeper
from worker.process import Process
from worker.runtime import name_message

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ORIGIN = {"request_id": "req-1", "traceparent": TRACEPARENT}


@pytest.fixture(autouse=True)
def bare() -> Iterator[None]:
    """A context in which nothing is told yet."""
    token = origin.current.set(origin.NOWHERE)
    clear_contextvars()
    yield
    clear_contextvars()
    origin.current.reset(token)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.msg for record in caplog.records if isinstance(record.msg, dict)]


async def test_lines_of_a_run_have_the_id_that_its_row_knows(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = await make_run(process.stores.pool, settings={"origin": ORIGIN, "workflow_id": "w-1"})
    await drive(process, run)
    told = [line for line in lines(caplog) if line.get("agent_run_id") == str(run.id)]
    assert [line["event"] for line in told] == ["run.claimed", "run.ended"]
    for line in told:
        assert (line["request_id"], line["workflow_id"], line["attempt"]) == ("req-1", "w-1", 1)
        assert (line["thread_id"], line["account_id"]) == (str(run.thread_id), str(run.account_id))
        assert line["instance_id"] == process.stores.instance_id
    assert str(run.id) not in run_words


async def test_a_message_that_is_sent_again_says_where_its_run_comes_from(stores: Stores) -> None:
    run = await make_run(stores.pool, settings={"origin": ORIGIN})
    await age(stores.pool, run.id, "created_at")
    await sweeper.sweep(stores)
    await eventually_sent(run.id)
    [message] = await queued_messages()
    assert message["kwargs"].items() >= ORIGIN.items()


async def test_a_run_without_a_request_is_sent_as_ever(stores: Stores) -> None:
    run = await make_run(stores.pool)
    await age(stores.pool, run.id, "created_at")
    await sweeper.sweep(stores)
    await eventually_sent(run.id)
    [message] = await queued_messages()
    assert not {"request_id", "traceparent"} & message["kwargs"].keys()


@pytest.mark.parametrize(
    ("kwargs", "args", "told"),
    [
        ({"agent_run_id": "r" * 36, "request_id": "req-1"}, (), {"agent_run_id": "r" * 36, "request_id": "req-1"}),
        ({}, ("r" * 36,), {"agent_run_id": "r" * 36}),
        ({"agent_run_id": "r" * 37, "request_id": "a b"}, (), {}),
        ({"agent_run_id": {"a": 1}, "request_id": ["x"], "traceparent": 7}, (), {}),
        ({}, (), {}),
    ],
)
def test_a_thread_tells_of_the_message_that_it_has_and_of_none_before(kwargs: Any, args: Any, told: Any) -> None:
    name_message(Mock(kwargs={"request_id": "before", "agent_run_id": "b" * 36}, args=(), actor_name="x"))
    name_message(Mock(kwargs=kwargs, args=args, actor_name="run_agent_background"))
    assert get_contextvars() == told
    assert origin.current.get().request_id == told.get("request_id", "")

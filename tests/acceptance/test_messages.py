"""Messages that are not what the workers expect: none is lost, none comes for ever, none harms what runs beside it."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

import dramatiq

from services.broker import HEALTH_QUEUE
from tests.acceptance.brokers import Messages, messages_of
from tests.acceptance.client import Client, check_whole_log, until
from tests.acceptance.operators import Deployment
from tests.acceptance.test_crashes import check_went_on
from tests.fakes import FakeModel
from tests.waiting import eventually

SLOTS = 2 * 16
"""Run messages that the two workers may hold: what is never acked takes one for good."""


def said(deployment: Deployment, pattern: str) -> int:
    return sum(worker.said(pattern) for worker in deployment.workers)


async def test_messages_for_runs_that_nobody_can_begin_are_acked_logged_and_nothing_else(
    system: Deployment, client: Client, fake: FakeModel
) -> None:
    talk = fake.talk()
    ended = await client.initiate()
    log_of_ended = await client.read(ended.run_id)
    live = await client.initiate(talk.model)
    async with client.stream(live.run_id) as stream:
        seen = await stream.take(10)
        with messages_of(system) as messages:
            malformed = ["", "no-uuid", 17, None, {"a": "run"}, ["x"], "0" * 500]
            for odd in malformed:
                messages.send(agent_run_id=odd)
            for _ in range(SLOTS):
                messages.send(agent_run_id=str(uuid4()), thread_id="x", added_later=1)
            for _ in range(5):
                messages.send(agent_run_id=ended.run_id)
                messages.send(agent_run_id=live.run_id)
            await eventually(lambda: said(system, "run.unknown") == len(malformed))
            await eventually(lambda: said(system, "run.nothing_to_do.*known=False") == SLOTS)
            await eventually(lambda: said(system, f"run.nothing_to_do.*{ended.run_id}.*known=True") >= 5)
            elsewhere = f"run.(driven_elsewhere|held_elsewhere|nothing_to_do).*{live.run_id}"
            await eventually(lambda: said(system, elsewhere) >= 5)
            talk.enough()
            await check_went_on(client, live, seen + await stream.rest(), attempts=1)
            assert await client.read(ended.run_id) == log_of_ended
            check_whole_log(await client.read((await client.initiate()).run_id), "completed")
            await eventually(lambda: messages.waiting == 0)
            assert messages.dead == 0
    assert not said(system, "Traceback|CRITICAL")


UNUSABLE: list[Callable[[Messages], None]] = [
    lambda messages: messages.send_bytes(b"not even JSON \xff"),
    lambda messages: messages.send_bytes(b"[1, 2]"),
    lambda messages: messages.send_bytes(b"{}"),
    lambda messages: messages.send_bytes(b"[" * 100_000),
    lambda messages: messages.send_fields(options=["eta"]),
    lambda messages: messages.send_fields(options=None),
    lambda messages: messages.send_fields(options={"throws": "KeyError", "redis_message_id": str(uuid4())}),
    lambda messages: messages.send_fields(actor_name={"a": 1}),
    lambda messages: messages.send_fields(message_id=["a"]),
    lambda messages: messages.send_fields(kwargs=["agent_run_id"]),
    lambda messages: messages.send_fields(added="field"),
    lambda messages: messages.send_fields(queue_name=HEALTH_QUEUE),
    lambda messages: messages.send_fields(queue_name="nobodys"),
    lambda messages: messages.send(actor="an_actor_of_a_later_version"),
    lambda messages: messages.send(),
    lambda messages: messages.send(actor="run_workflow_background", execution_id="later"),
]
"""What no actor can make sense of."""


async def test_a_message_that_no_worker_can_use_becomes_a_dead_letter(
    system: Deployment, client: Client, fake: FakeModel
) -> None:
    talk = fake.talk()
    live = await client.initiate(talk.model)
    async with client.stream(live.run_id) as stream:
        seen = await stream.take(10)
        with messages_of(system) as messages:
            for send in UNUSABLE:
                send(messages)
            await eventually(lambda: messages.dead == len(UNUSABLE))
            talk.enough()
            await check_went_on(client, live, seen + await stream.rest(), attempts=1)
            runs = await asyncio.gather(*(client.initiate() for _ in range(SLOTS // 2)))
            for run in runs:
                check_whole_log(await client.read(run.run_id), "completed")
            await eventually(lambda: messages.waiting == 0)
            assert messages.dead == len(UNUSABLE)
    assert not said(system, "Restarting consumer|You've found a bug|Exception in thread")


async def test_a_health_check_shows_that_a_worker_takes_messages_and_reaches_redis(system: Deployment) -> None:
    key = f"health:{uuid4()}"
    with messages_of(system) as messages:
        messages.broker.enqueue(dramatiq.Message(HEALTH_QUEUE, "check_health", (key,), {}, {}))
    async with system.redis() as redis:
        assert await until(lambda: redis.get(key)) == b"healthy"
        assert 0 < await redis.ttl(key) <= 60
        await redis.delete(key)

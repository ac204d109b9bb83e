"""How long after the POST a stop reaches a reader, before pick-up, in mid-text, in silence."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.acceptance.client import Client, Event, Started, Stream, check_whole_log, streamed_text

TEXT = "demo/lorem?chunks=100000&delay_ms=10"
"""Goes on until it is stopped."""
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Stop:
    """One stop: seconds from the POST to its answer and to the last event at a reader that was connected."""

    kind: str
    answer: float
    last_event: float


async def stop_waiting(client: Client) -> Stop:
    """Before pick-up: the run waits for its time."""
    thread_id = (await client.initiate()).thread_id
    run_id = await client.start(thread_id, TEXT, delay_seconds=600)
    async with client.stream(run_id) as stream:
        stop, events = await stop_read_run(client, "before pick-up", run_id, stream, [])
    check_whole_log(events, "stopped")
    return stop


async def stop_in_text(client: Client, chance: random.Random, model: str = TEXT) -> Stop:
    """In mid-text: the text that readers saw is stored."""
    started = await client.initiate(model)
    async with client.stream(started.run_id) as stream:
        seen = await stream.take(chance.randint(3, 30))
        stop, events = await stop_read_run(client, "in mid-text", started.run_id, stream, seen)
    check_whole_log(events, "stopped")
    await check_kept(client, started, events)
    return stop


async def stop_in_silence(
    client: Client, chance: random.Random, model: str, asked: Callable[[], Awaitable[object]] | None = None
) -> Stop:
    """While the model call says nothing; `asked` waits until the model was asked."""
    started = await client.initiate(model)
    async with client.stream(started.run_id) as stream:
        seen = await stream.until("thread_run_start")
        if asked:
            await asked()
        await asyncio.sleep(chance.uniform(0.05, 0.15))
        stop, events = await stop_read_run(client, "in silence", started.run_id, stream, seen)
    check_whole_log(events, "stopped")
    return stop


async def stop_read_run(
    client: Client, kind: str, run_id: str, stream: Stream, seen: list[Event]
) -> tuple[Stop, list[Event]]:
    """POST the stop while a reader, which has `seen` some events, waits for the last one."""
    async with asyncio.timeout(STOP_SECONDS):
        reading = asyncio.ensure_future(stream.rest())
        asked = time.monotonic()
        status = await client.stop(run_id)
        answered = time.monotonic()
        events = await reading
    assert status == "stopped", status
    assert (await client.get(run_id))["status"] == "stopped"
    return Stop(kind, answered - asked, stream.heard_at - asked), seen + events


async def check_kept(client: Client, started: Started, events: Sequence[Event]) -> None:
    """What was streamed is the thread's last message, word for word."""
    stored = (await client.messages(started.thread_id))[-1]
    assert stored["type"] == "assistant", stored
    assert stored["content"]["content"] == streamed_text(events)


async def measure(
    client: Client, count: int, silent_model: str | None, seed: int = 1, told: Callable[[], None] = lambda: None
) -> list[Stop]:
    """`count` stops, one after the other, the kinds in turn; `told` is called after each."""
    chance, stops = random.Random(seed), []
    for number in range(count):
        kind = number % (3 if silent_model else 2)
        if kind == 0:
            stops.append(await stop_waiting(client))
        elif kind == 1:
            stops.append(await stop_in_text(client, chance))
        else:
            stops.append(await stop_in_silence(client, chance, silent_model or ""))
        told()
    return stops


def by_kind(stops: Sequence[Stop]) -> dict[str, list[Stop]]:
    return {kind: [stop for stop in stops if stop.kind == kind] for kind in dict.fromkeys(stop.kind for stop in stops)}


def last_events(stops: Iterable[Stop]) -> list[float]:
    """Seconds from each POST to the last event."""
    return [stop.last_event for stop in stops]

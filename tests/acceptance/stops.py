"""How long after the POST a stop reaches a reader, before pick-up, in mid-text, in silence.

Alone: `python -m tests.acceptance.stops --url http://127.0.0.1:8000 --token "$(./dev token)" --stops 300`; the silent
kind needs workers whose OPENAI_BASE_URL is `python -m tests.fakes` and `--silent openai/script-silent`.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.acceptance.client import Client, Event, Started, Stream, check_whole_log, streamed_text

TEXT = "demo/lorem?chunks=2000&delay_ms=10"
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


async def stop_in_silence(client: Client, chance: random.Random, model: str) -> Stop:
    """While the model call says nothing."""
    started = await client.initiate(model)
    async with client.stream(started.run_id) as stream:
        seen = await stream.until("thread_run_start")
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


async def measure(client: Client, count: int, silent_model: str | None, seed: int = 1) -> list[Stop]:
    """`count` stops, one after the other, the kinds in turn."""
    chance, stops = random.Random(seed), []
    for number in range(count):
        kind = number % (3 if silent_model else 2)
        if kind == 0:
            stops.append(await stop_waiting(client))
        elif kind == 1:
            stops.append(await stop_in_text(client, chance))
        else:
            stops.append(await stop_in_silence(client, chance, silent_model or ""))
    return stops


def percentile(stops: Sequence[Stop], share: float) -> float:
    """Seconds from the POST to the last event, for `share` of the stops at most."""
    took = sorted(stop.last_event for stop in stops)
    return took[min(int(len(took) * share), len(took) - 1)]


def table(stops: Sequence[Stop]) -> str:
    kinds = {kind: [stop for stop in stops if stop.kind == kind] for kind in dict.fromkeys(stop.kind for stop in stops)}
    return "\n".join(row(kind, some) for kind, some in {**kinds, "all": stops}.items())


def row(kind: str, stops: Sequence[Stop]) -> str:
    p50, p95, p99 = (percentile(stops, share) * 1000 for share in (0.5, 0.95, 0.99))
    answer = sorted(stop.answer for stop in stops)[len(stops) // 2] * 1000
    shares = f"last event after ms: p50 {p50:5.1f}  p95 {p95:5.1f}  p99 {p99:5.1f}"
    return f"{kind:<15}{len(stops):>5} stops   {shares}   answer p50 {answer:.1f}"


async def run(url: str, token: str, count: int, silent_model: str | None) -> str:
    async with Client(url, token) as client:
        return table(await measure(client, count, silent_model))


def main() -> None:
    parser = argparse.ArgumentParser(description="Stop runs and measure when their readers know.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", required=True)
    parser.add_argument("--stops", type=int, default=300)
    parser.add_argument("--silent", metavar="MODEL", help="a model that never answers, such as openai/script-silent")
    options = parser.parse_args()
    sys.stdout.write(asyncio.run(run(options.url, options.token, options.stops, options.silent)) + "\n")


if __name__ == "__main__":
    main()

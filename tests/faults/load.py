"""Runs that are watched by readers who come back whatever happens, and what must be true of them in the end."""

import asyncio
import random
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar
from uuid import uuid4

from httpx2 import AsyncBaseTransport, AsyncHTTPTransport, ConnectError, HTTPStatusError, Limits, Request, Response
from httpx2 import TransportError as Broken

from agent.llm.demo import lorem
from tests.acceptance.client import Client, Event, Started, check_whole_log, streamed_text
from tests.acceptance.readers import Reading
from tests.fakes import Talker
from tests.waiting import eventually

T = TypeVar("T")

TRY_AGAIN_SECONDS = 0.1
ASK_SECONDS = 0.5
UNAVAILABLE = 503
SHORT_RUN = {"prompt": "Hello", "model_name": "demo/echo"}
FLOWING = 8
GIVEN_UP = "its worker died"


class Rotation(AsyncBaseTransport):
    """Each request goes to the next API process, past those that refuse: what stands before several of them does."""

    def __init__(self, ports: Callable[[], Sequence[int]]) -> None:
        self.ports = ports
        self.turn = 0
        self.inner = AsyncHTTPTransport(verify=False, limits=Limits(max_connections=None))

    async def handle_async_request(self, request: Request) -> Response:
        self.turn += 1
        ports = self.ports()
        for n in range(len(ports)):
            request.url = request.url.copy_with(port=ports[(self.turn + n) % len(ports)])
            with suppress(ConnectError):
                return await self.inner.handle_async_request(request)
        raise ConnectError("no API process takes connections", request=request)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def accepted(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the answer is neither a broken connection nor 503."""
    while True:
        try:
            return await ask()
        except HTTPStatusError as error:
            if error.response.status_code != UNAVAILABLE:
                raise
        except Broken:
            pass
        await asyncio.sleep(TRY_AGAIN_SECONDS)


@dataclass
class Timed(Reading):
    """What one reader saw, and when (`time.monotonic()`)."""

    times: list[float] = field(default_factory=list)

    @property
    def silence(self) -> float:
        return max((later - sooner for sooner, later in pairwise(self.times)), default=0.0)


@dataclass
class Watched:
    """One run and its readers."""

    started: Started
    readings: list[Timed]
    tasks: "list[asyncio.Task[None]]"

    @property
    def over(self) -> bool:
        return all(reading.over for reading in self.readings)

    def seen_since(self, moment: float, status_type: str | None = None) -> float | None:
        """When the slowest of its readers first saw an event (of this type, or the last one) after `moment`."""
        seen = [first_since(reading, moment, status_type) for reading in self.readings]
        known = [when for when in seen if when is not None]
        return max(known) if len(known) == len(seen) else None


def first_since(reading: Timed, moment: float, status_type: str | None) -> float | None:
    start = bisect_left(reading.times, moment)
    for event, when in zip(reading.events[start:], reading.times[start:], strict=True):
        if status_type is None or event.status_type == status_type or event.final:
            return when
    return None


@dataclass(frozen=True)
class Tally:
    """What a load came to."""

    runs: int
    readers: int
    events: int
    resumes: int
    attempts: int
    void: int
    silence: float
    """The longest that any reader waited for its next event, in seconds."""
    asked: int
    refused: int
    """Starts that were asked for meanwhile, and how many were answered 503."""
    given_up: int = 0
    """Runs that lost their worker too often."""

    def __str__(self) -> str:
        void = f", {self.void} void ids" if self.void else ""
        given_up = f", {self.given_up} given up" if self.given_up else ""
        return (
            f"{self.runs - self.given_up} of {self.runs} runs completed{given_up};"
            f" {self.readers} readers saw the same {self.events} events"
            f" over {self.resumes} reconnects{void}, silent for {self.silence:.1f} s at most;"
            f" {self.attempts} attempt{'s' * (self.attempts > 1)} at most; {self.asked} starts meanwhile"
            + (f", {self.refused} of them answered 503" if self.refused else "")
        )


@dataclass
class Load:
    """Demo runs of `chunks` chunks `delay_ms` apart, or of a `talk`, each with `readers` readers."""

    client: Client
    chunks: int = 120
    delay_ms: int = 25
    readers: int = 2
    watched: list[Watched] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Short runs that were accepted while a fault was struck."""
    refused: int = 0
    may_give_up: bool = False
    """Whether a run may lose its worker so often that it is given up."""
    talk: Talker | None = None

    @property
    def model(self) -> str:
        return self.talk.model if self.talk else f"demo/lorem?chunks={self.chunks}&delay_ms={self.delay_ms}"

    async def begin(self, count: int) -> None:
        """Start so many runs and their readers."""
        self.watched += await asyncio.gather(*(self.watch() for _ in range(count)))

    async def watch(self) -> Watched:
        key = str(uuid4())
        started = await accepted(lambda: self.client.initiate(self.model, key=key))
        readings = [Timed() for _ in range(self.readers)]
        tasks = [asyncio.create_task(read(self.client, started.run_id, reading)) for reading in readings]
        return Watched(started, readings, tasks)

    @property
    def live(self) -> list[Watched]:
        return [one for one in self.watched if not one.over]

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Meanwhile a client goes on starting short runs: each is accepted, or refused with 503 and when to retry."""
        task = asyncio.create_task(self.ask_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()):
            raise error

    async def ask_on(self) -> None:
        while True:
            await asyncio.sleep(ASK_SECONDS)
            with suppress(Broken):
                answer = await self.client.http.post("/agent/initiate", data=SHORT_RUN)
                assert answer.status_code in (200, UNAVAILABLE), f"{answer.status_code}: {answer.text}"
                if answer.status_code == UNAVAILABLE:
                    assert int(answer.headers["Retry-After"]) > 0
                    self.refused += 1
                else:
                    self.asked.append(answer.json()["agent_run_id"])

    async def flowing(self) -> None:
        """Once every reader has seen some chunks, and some more than before."""
        readings = [reading for one in self.watched for reading in one.readings]
        wanted = [len(reading.events) + FLOWING for reading in readings]

        def flow() -> bool:
            seen = zip(readings, wanted, strict=True)
            return all(reading.over or len(reading.events) >= count for reading, count in seen)

        await eventually(flow, within=60, says="not every run flows")

    async def finish(self, within: float) -> Tally:
        """Wait for all readers, then check every run. Raises: AssertionError."""
        tasks = [task for one in self.watched for task in one.tasks]
        await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_EXCEPTION)
        cut = [one.started.run_id for one in self.watched if any(task.cancelled() for task in one.tasks)]
        assert not cut, f"readers that were cancelled, and not by us: {cut}"
        for task in tasks:
            if task.done():
                task.result()
        assert not self.live, f"still unfinished: {[one.started.run_id for one in self.live]}"
        rows = await asyncio.gather(*(accepted(partial(self.check, one)) for one in self.watched))
        asked = (accepted(partial(self.client.get, run_id, wait_seconds=60)) for run_id in self.asked)
        for run in await asyncio.gather(*asked):
            assert run["status"] == "completed", run
        readings = [reading for one in self.watched for reading in one.readings]
        return Tally(
            runs=len(self.watched),
            readers=len(readings),
            events=sum(len(one.readings[0].events) for one in self.watched),
            resumes=sum(reading.connections - 1 for reading in readings),
            attempts=max((run["attempt"] for run in rows), default=0),
            given_up=sum(run["status"] == "failed" for run in rows),
            asked=len(self.asked) + self.refused,
            refused=self.refused,
            silence=max((reading.silence for reading in readings), default=0.0),
            void=sum(event.status_type == "void" for one in self.watched for event in one.readings[0].events),
        )

    async def check(self, watched: Watched) -> dict[str, Any]:
        """One run: its log, its readers, its message and its row agree. Returns the row."""
        run = await self.client.get(watched.started.run_id)
        given_up = self.may_give_up and GIVEN_UP in (run.get("error") or "")
        assert run["status"] == "completed" or given_up, run
        first, *others = (reading.events for reading in watched.readings)
        check_whole_log(first, run["status"])
        assert all(other == first for other in others), f"the readers of {run['id']} differ"
        again = await self.client.read(watched.started.run_id)
        assert again == first, f"another log of {run['id']} after its end"
        if not given_up:
            await self.check_text(watched, first)
        return run

    async def check_text(self, watched: Watched, first: list[Event]) -> None:
        run_id = watched.started.run_id
        streamed = streamed_text(first)
        told = self.talk.texts if self.talk else ["".join(lorem(self.chunks))]
        assert streamed in told, f"the text of {run_id}"
        assert [event.content["content"] for event in first if event.stream_status == "complete"] == [streamed]
        stored = [said["content"]["content"] for said in (await self.client.messages(watched.started.thread_id))[1:]]
        assert stored == [streamed], f"the messages of {run_id}"

    def abandon(self) -> None:
        for one in self.watched:
            for task in one.tasks:
                task.cancel()


async def read(client: Client, run_id: str, reading: Timed) -> None:
    """A run's whole log as an EventSource gets it: connecting again whenever a stream ends before the last event."""
    while not reading.over:
        reading.connections += 1
        with suppress(Broken):
            async with client.stream(run_id, reading.after) as stream:
                assert stream.status == 200, f"{stream.status}: an EventSource would give up"
                async for event in stream:
                    reading.events.append(event)
                    reading.times.append(time.monotonic())
        await asyncio.sleep(random.uniform(0.05, 0.15))

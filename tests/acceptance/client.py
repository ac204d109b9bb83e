"""A client of the API as strict as a browser's: what the contract does not allow in a stream is an error."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Self, TypeVar, cast
from uuid import UUID, uuid4

import orjson
from httpx2 import AsyncBaseTransport, AsyncClient, Limits, Response, Timeout, TransportError

from services.tokens import sign_access_token
from tests.waiting import PATIENT, eventually

T = TypeVar("T")

FRAME = re.compile(rb"id: (\d+)\ndata: ([^\n]*)")
RETRY = re.compile(rb"retry: (\d+)")
FINAL = {"completed", "failed", "stopped"}


class Event(NamedTuple):
    id: int
    data: bytes

    @property
    def said(self) -> dict[str, Any]:
        said: dict[str, Any] = orjson.loads(self.data)
        return said

    @property
    def content(self) -> dict[str, Any]:
        """The `content` of a message-shaped event, which travels as a JSON string; empty for the last event."""
        content: dict[str, Any] = orjson.loads(self.said.get("content", "{}"))
        return content

    @property
    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = orjson.loads(self.said.get("metadata", "{}"))
        return metadata

    @property
    def final(self) -> str | None:
        """The status that the last event of a run says; None of every other event."""
        if self.data.startswith(b'{"sequence":'):
            return None
        status = self.said.get("status")
        return status if self.said["type"] == "status" and status in FINAL else None

    @property
    def status_type(self) -> str | None:
        return self.content.get("status_type") if self.said["type"] == "status" else None

    @property
    def stream_status(self) -> str | None:
        return self.metadata.get("stream_status")


class Parser:
    """Server-sent events as CONTRACT section 5 has them; anything else is an AssertionError."""

    def __init__(self) -> None:
        self.rest = b""
        self.retries: list[int] = []
        self.comments: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        *blocks, self.rest = (self.rest + data).split(b"\n\n")
        return [event for block in blocks if (event := self.parse(block))]

    def parse(self, block: bytes) -> Event | None:
        if frame := FRAME.fullmatch(block):
            return Event(int(frame[1]), frame[2])
        if retry := RETRY.fullmatch(block):
            self.retries.append(int(retry[1]))
        else:
            assert block.startswith(b": "), f"not allowed in a stream: {block!r}"
            assert b"\n" not in block, f"not allowed in a stream: {block!r}"
            self.comments.append(block[2:].decode())
        return None


class Stream:
    """One connection to a run's stream. Iterating gives its events; a later loop goes on where the one before broke."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self.parser = Parser()
        self.events = self.receive()
        self.heard_at = 0.0
        """When the newest event arrived (`time.monotonic()`)."""

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def comments(self) -> list[str]:
        return self.parser.comments

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.events

    async def receive(self) -> AsyncGenerator[Event, None]:
        async for data in self.response.aiter_raw():
            events = self.parser.feed(data)
            if events:
                self.heard_at = time.monotonic()
            for event in events:
                yield event
        assert not self.parser.rest, f"the stream ended in the middle of an event: {self.parser.rest!r}"

    async def take(self, count: int) -> list[Event]:
        """The next `count` events; fewer when the server closes before."""
        events: list[Event] = []
        while len(events) < count and (event := await anext(self.events, None)):
            events.append(event)
        return events

    async def rest(self) -> list[Event]:
        """All that comes until the server closes."""
        return [event async for event in self]

    async def until(self, status_type: str) -> list[Event]:
        """The events up to a status of this type, that one included."""
        events: list[Event] = []
        async for event in self:
            events.append(event)
            if event.status_type == status_type:
                return events
        raise AssertionError(f"no {status_type} in {len(events)} events; comments: {self.comments}")


@dataclass(frozen=True)
class Started:
    run_id: str
    thread_id: str
    project_id: str


class Client:
    """One signed-in user of an API at `url`."""

    def __init__(self, url: str, token: str, transport: AsyncBaseTransport | None = None) -> None:
        self.token = token
        self.http = AsyncClient(
            transport=transport,
            base_url=f"{url}/api",
            headers={"Authorization": f"Bearer {token}"},
            timeout=Timeout(30.0, read=90.0),
            limits=Limits(max_connections=None),
            trust_env=False,
            verify=False,  # plain HTTP; to load the certificates would cost each client 20 ms
        )

    @classmethod
    def signed_in(
        cls, url: str, secret: str, user_id: UUID | None = None, transport: AsyncBaseTransport | None = None
    ) -> Self:
        return cls(url, sign_access_token(secret, user_id or uuid4(), lifetime=timedelta(hours=1)), transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def initiate(
        self, model: str = "demo/echo", prompt: str = "Hello there", *, key: str | None = None, **fields: Any
    ) -> Started:
        """`key` makes it safe to ask again after a broken connection."""
        headers = {"Idempotency-Key": key} if key else {}
        data = {"prompt": prompt, "model_name": model, **fields}
        answer = await self.http.post("/agent/initiate", data=data, headers=headers)
        made = answer.raise_for_status().json()
        return Started(made["agent_run_id"], made["thread_id"], made["project_id"])

    async def start(self, thread_id: str, model: str = "demo/echo", **options: Any) -> str:
        answer = await self.http.post(f"/thread/{thread_id}/agent/start", json={"model_name": model, **options})
        run_id: str = answer.raise_for_status().json()["agent_run_id"]
        return run_id

    async def stop(self, run_id: str) -> str:
        status: str = (await self.http.post(f"/agent-run/{run_id}/stop")).raise_for_status().json()["status"]
        return status

    async def get(self, run_id: str, wait_seconds: float = 0) -> dict[str, Any]:
        answer = await self.http.get(f"/agent-run/{run_id}", params={"wait_seconds": wait_seconds})
        run: dict[str, Any] = answer.raise_for_status().json()
        return run

    async def messages(self, thread_id: str) -> list[dict[str, Any]]:
        """The messages of a thread, oldest first."""
        answer = await self.http.get(f"/threads/{thread_id}/messages", params={"order": "asc"})
        messages: list[dict[str, Any]] = answer.raise_for_status().json()["messages"]
        return messages

    @asynccontextmanager
    async def stream(self, run_id: str, after: int | None = None) -> AsyncIterator[Stream]:
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        async with self.http.stream("GET", f"/agent-run/{run_id}/stream", headers=headers) as response:
            stream = Stream(response)
            async with aclosing(stream.events):
                yield stream

    async def read(self, run_id: str, after: int | None = None) -> list[Event]:
        """All events after a cursor, until the server closes; nothing on 204."""
        async with self.stream(run_id, after) as stream:
            assert stream.status in (200, 204), stream.status
            return await stream.rest()


async def follow(client: Client, run_id: str, within: float = 120.0) -> list[Event]:
    """A run's whole log as an EventSource gets it: connecting again whenever the server or the wire ends a stream."""
    events: list[Event] = []
    async with asyncio.timeout(within):
        while not (events and events[-1].final):
            with suppress(TransportError):
                async with client.stream(run_id, events[-1].id if events else None) as stream:
                    assert stream.status == 200, f"{stream.status}: an EventSource would give up"
                    async for event in stream:
                        events.append(event)
            await asyncio.sleep(0.1)
    return events


async def until(look: Callable[[], Awaitable[T]], *, within: float = PATIENT, every: float = 0.02, says: str = "") -> T:
    """`eventually` for a look that is a coroutine."""

    def begin() -> Any:
        return look()

    return cast(T, await eventually(begin, within=within, every=every, says=says))


def streamed_text(events: Iterable[Event]) -> str:
    """The assistant text of all chunks that no `run_resumed` made void."""
    chunks: list[str] = []
    for event in events:
        if event.status_type == "run_resumed":
            chunks.clear()
        elif event.stream_status == "chunk":
            chunks.append(event.content["content"])
    return "".join(chunks)


def check_whole_log(events: list[Event], status: str) -> None:
    """A run's log from its first event to its last, as every reader must have seen it. Raises: AssertionError."""
    assert [event.id for event in events] == list(range(len(events))), "a gap or a duplicate"
    assert [event.final for event in events if event.final] == [status], "not exactly one last event"
    assert events[-1].final == status, "something after the last event"
    kinds = [event.status_type for event in events[:-1]]
    assert kinds[0] == "thread_run_start"
    assert kinds[-1] == "thread_run_end"
    assert kinds.count("thread_run_start") == kinds.count("thread_run_end") == 1
    sequences = [event.said["sequence"] for event in events[:-1] if event.status_type != "void"]
    assert sequences == sorted(set(sequences)), "sequence does not grow"

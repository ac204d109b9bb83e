"""The least that writes logs: events encoded, one RPUSH and one PUBLISH for each log that spoke, in one write."""

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import hiredis
import orjson

from services.runs import keys
from services.runs.events import Event


def shaped(event: Event, sequence: int, thread_id: str, now: object) -> dict[str, Any]:
    """A message-shaped event as readers get it."""
    return {
        "sequence": sequence,
        "message_id": None,
        "thread_id": thread_id,
        "type": event.type,
        "is_llm_message": event.is_llm_message,
        "content": orjson.dumps(event.content).decode(),
        "metadata": orjson.dumps(event.metadata).decode(),
        "created_at": now,
        "updated_at": now,
    }


def packed(command: tuple[Any, ...]) -> bytes:
    words: bytes = hiredis.pack_command(command)
    return words


class Wire(asyncio.Protocol):
    """A connection that counts answers and looks at none, errors aside."""

    def __init__(self) -> None:
        self.reader, self.awaited = hiredis.Reader(), 0
        self.answered = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (answer := self.reader.gets()) is not False:
            self.awaited -= 1
            if isinstance(answer, Exception):
                self.answered.set_exception(answer)
        if self.awaited == 0 and not self.answered.done():
            self.answered.set_result(None)

    async def exchange(self, commands: list[bytes]) -> None:
        self.awaited, self.answered = len(commands), asyncio.get_running_loop().create_future()
        self.transport.writelines(commands)
        await self.answered


class BareWriter:
    """At once when idle and every `interval` seconds under load, as Longrun; no fence, no archive, no bounds."""

    def __init__(self, redis_url: str, interval: float) -> None:
        self.redis_url, self.interval = redis_url, interval
        self.names: dict[UUID, tuple[str, str]] = {}
        self.pending: defaultdict[UUID, list[bytes]] = defaultdict(list)
        self.sequences: defaultdict[UUID, int] = defaultdict(int)
        self.news, self.moved = asyncio.Event(), asyncio.Event()

    async def open(self) -> None:
        address = urlsplit(self.redis_url)
        _, self.wire = await asyncio.get_running_loop().create_connection(
            Wire, address.hostname or "127.0.0.1", address.port or 6379
        )
        if address.password:
            await self.wire.exchange([packed(("AUTH", address.password))])
        await self.wire.exchange([packed(("SELECT", address.path.strip("/") or "0"))])
        self.task = asyncio.create_task(self.write())

    def say(self, run_id: UUID, thread_id: str, event: Event) -> None:
        sequence = self.sequences[run_id]
        self.sequences[run_id] = sequence + 1
        self.pending[run_id].append(orjson.dumps(shaped(event, sequence, thread_id, datetime.now(UTC))))
        self.news.set()

    async def write(self) -> None:
        while True:
            await self.news.wait()
            self.news.clear()
            batches, self.pending = self.pending, defaultdict(list)
            await self.wire.exchange([command for log in batches.items() for command in self.commands(*log)])
            self.moved.set()
            await asyncio.sleep(self.interval)

    def commands(self, run_id: UUID, batch: list[bytes]) -> tuple[bytes, bytes]:
        if run_id not in self.names:
            self.names[run_id] = keys.responses(run_id), keys.news(run_id)
        responses, news = self.names[run_id]
        return packed(("RPUSH", responses, *batch)), packed(("PUBLISH", news, "new"))

    async def settle(self) -> None:
        """Wait until all that was said is in Redis. Raises: what ended the writing."""
        while self.pending or not self.wire.answered.done():
            self.moved.clear()
            moved = asyncio.ensure_future(self.moved.wait())
            await asyncio.wait([moved, self.task], return_when=asyncio.FIRST_COMPLETED)
            if self.task.done():
                await self.task

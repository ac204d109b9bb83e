"""The one subscription connection of a process."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from redis import exceptions
from redis.asyncio.client import PubSub

from services.background import repeat, stop
from services.log import logger
from services.pace import Pace
from services.redis import Unreachable, open_redis, packed
from services.settings import RedisSettings

RECONNECT_SECONDS = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """`on_message` gets each payload; `on_reset` says that messages may have been missed: look again."""

    on_message: Callable[[bytes], None]
    on_reset: Callable[[], None]


class Channels:
    """Every subscription of a process over one connection, fanned out in memory (TRAPS 18, 19)."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self.client = open_redis(settings, pool_size=1)
        self.pace = Pace()
        self.heard_at = 0.0
        self.listeners: dict[str, set[Listener]] = defaultdict(set)
        self.waiting: dict[str, deque[asyncio.Future[None]]] = defaultdict(deque)
        self.pubsub: PubSub | None = None
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.task = asyncio.create_task(repeat(self.connect_once), name="channels")

    async def close(self) -> None:
        await stop([self.task] if self.task else [])
        await self.client.aclose()

    @asynccontextmanager
    async def listen(
        self, *names: str, on_message: Callable[[bytes], None], on_reset: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Subscribed, as the server has confirmed, for the length of the block.

        Raises: redis ConnectionError when the server does not confirm within the socket timeout.
        """
        with self.begin_listening(*names, on_message=on_message, on_reset=on_reset) as confirmed:
            await confirmed()
            yield

    @contextmanager
    def begin_listening(
        self, *names: str, on_message: Callable[[bytes], None], on_reset: Callable[[], None]
    ) -> Iterator[Callable[[], Awaitable[None]]]:
        """As `listen`, without waiting: the SUBSCRIBE is on its way, and what this gives waits for the server.

        What it gives raises: redis ConnectionError when the server does not confirm within the socket timeout.
        """
        listener = Listener(on_message, on_reset)
        begun = [(name, self.begin(name, listener)) for name in names]
        try:
            yield partial(self.all_confirmed, begun)
        finally:
            for name, confirmed in begun:
                self.remove(name, listener)
                self.withdraw_unsent(name, confirmed)

    async def all_confirmed(self, begun: Iterable[tuple[str, "asyncio.Future[None] | None"]]) -> None:
        for name, confirmed in begun:
            await self.wait_for(name, confirmed)

    async def add(self, name: str, listener: Listener) -> None:
        await self.wait_for(name, self.begin(name, listener))

    def begin(self, name: str, listener: Listener) -> "asyncio.Future[None] | None":
        """Send the SUBSCRIBE; returns what its confirmation settles, or None when the server has confirmed already."""
        first = not self.listeners[name]
        self.listeners[name].add(listener)
        if not first and not self.waiting.get(name) and self.pubsub:
            return None
        confirmed = asyncio.get_running_loop().create_future()
        self.waiting[name].append(confirmed)
        if self.pubsub:
            self.command("SUBSCRIBE", name)
        return confirmed

    async def wait_for(self, name: str, confirmed: "asyncio.Future[None] | None") -> None:
        if confirmed is None:
            return
        try:
            async with asyncio.timeout(self.settings.socket_timeout.total_seconds()):
                await confirmed
        except TimeoutError as error:
            raise exceptions.ConnectionError(f"Redis did not confirm the subscription of {name}") from error
        finally:
            self.withdraw_unsent(name, confirmed)

    def withdraw_unsent(self, name: str, confirmed: "asyncio.Future[None] | None") -> None:
        if confirmed and not self.pubsub:
            self.withdraw(name, confirmed)

    def withdraw(self, name: str, confirmed: asyncio.Future[None]) -> None:
        """Wait no more for an answer that will not come: there is no connection."""
        waiters = self.waiting.get(name)
        if waiters is None:
            return
        with suppress(ValueError):
            waiters.remove(confirmed)
        if not waiters:
            del self.waiting[name]

    def remove(self, name: str, listener: Listener) -> None:
        self.listeners[name].discard(listener)
        if self.listeners[name]:
            return
        del self.listeners[name]
        if self.pubsub:
            self.command("UNSUBSCRIBE", name)

    def command(self, *words: str) -> None:
        """Queue a command for the connection; a failure shows in the reading task, which reconnects."""
        self.outgoing.put_nowait(words)

    async def connect_once(self) -> None:
        """Serve one connection as long as it lasts, then leave Redis a moment."""
        try:
            await self.serve_connection()
        except Unreachable as error:
            logger.warning("redis.subscriptions_lost", error=repr(error))
        await asyncio.sleep(RECONNECT_SECONDS)

    async def serve_connection(self) -> None:
        pubsub = self.client.pubsub()
        self.outgoing: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        try:
            await pubsub.connect()
            self.pubsub = pubsub
            await self.resubscribe(pubsub)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.write(pubsub.connection))
                group.create_task(self.read(pubsub.connection))
                group.create_task(self.notice_silence())
        except* Unreachable as errors:
            raise exceptions.ConnectionError(repr(errors.exceptions[0])) from errors
        finally:
            self.pubsub = None
            with suppress(*Unreachable):
                await pubsub.aclose()

    async def resubscribe(self, pubsub: PubSub) -> None:
        """Subscribe to all that is listened to; once it is confirmed, tell every listener to look again."""
        names, before = list(self.listeners), self.waiting
        self.waiting = defaultdict(deque)
        for name in names:
            # One waiter per SUBSCRIBE that is sent, first in first out: confirmations carry no other identity.
            merged = asyncio.get_running_loop().create_future()
            merged.add_done_callback(partial(self.settle, name, tuple(before.get(name, ()))))
            self.waiting[name].append(merged)
        for start in range(0, len(names), 500):
            await pubsub.execute_command("SUBSCRIBE", *names[start : start + 500])

    def settle(self, name: str, waiters: Iterable[asyncio.Future[None]], _: "asyncio.Future[None]") -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for listener in tuple(self.listeners.get(name, ())):
            self.tell(listener.on_reset)

    async def write(self, connection: Any) -> None:
        interval, task = self.settings.ping_interval.total_seconds(), asyncio.current_task()
        while not (task and task.cancelling()):  # redis-py may swallow the cancellation while it reconnects
            try:
                async with asyncio.timeout(interval):
                    commands: list[tuple[str, ...]] = [await self.outgoing.get()]
            except TimeoutError:
                commands = [("PING",)]
            while not self.outgoing.empty():
                commands.append(self.outgoing.get_nowait())
            await connection.send_packed_command(packed(commands), check_health=False)

    async def read(self, connection: Any) -> None:
        while True:
            replies = await connection._parser.replies()
            self.heard_at = monotonic()
            messages = sum(map(self.dispatch, replies))
            if messages:  # what only confirms must not hold up the first message of who has just subscribed
                await self.gather_more(connection)

    async def gather_more(self, connection: Any) -> None:
        """Leave what comes next to the kernel for a moment: what follows closely is read together."""
        pause, transport = self.pace.pause(), connection._writer.transport
        if not pause:
            return
        transport.pause_reading()
        try:
            await asyncio.sleep(pause)
        finally:
            if not transport.is_closing():
                transport.resume_reading()

    async def notice_silence(self) -> None:
        """Nobody says of a connection that it is dead: that two pings stay unanswered does.

        Raises: redis TimeoutError then.
        """
        patience = 2 * self.settings.ping_interval.total_seconds()
        self.heard_at = monotonic()
        silent = 0.0
        while silent < patience:
            await asyncio.sleep(patience - silent)
            silent = monotonic() - self.heard_at
        raise exceptions.TimeoutError("Redis says nothing on the subscriptions")

    def dispatch(self, reply: Any) -> bool:
        """Whether it was a message."""
        if isinstance(reply, Exception):
            raise reply
        if reply[0] == b"message":
            for listener in tuple(self.listeners.get(reply[1].decode(), ())):
                self.tell(listener.on_message, reply[2])
            return True
        if reply[0] == b"subscribe":
            self.confirm(reply[1].decode())
        return False

    def tell(self, callback: Callable[..., None], *heard: bytes) -> None:
        try:
            callback(*heard)
        except Exception:
            logger.exception("redis.listener_failed")

    def confirm(self, name: str) -> None:
        waiters = self.waiting.get(name)
        if not waiters:
            return
        confirmed = waiters.popleft()
        if not waiters:
            del self.waiting[name]
        if not confirmed.done():
            confirmed.set_result(None)

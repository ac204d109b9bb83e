"""What is asked again and again and seldom changes: known in the process, else in Redis, else in the database."""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from secrets import token_hex
from time import monotonic
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from services import metrics
from services.channels import Channels
from services.known import Counts, Found, Known
from services.log import logger
from services.redis import Client, Command, Unreachable

V = TypeVar("V")

TTL = timedelta(seconds=300)
MOST = 256
MAX_BYTES = 64 * 1024
"""Of one value as JSON; a larger one is looked up each time. With MOST it bounds what a process keeps: 16 MiB."""
MOST_OF_GROUP = 100

PURPOSE = b"longrun cache"
SIGNATURE_BYTES = 32

MARK = ""
"""The field of a group's hash that changes with every `forget`: a look-up that saw another one is not stored."""

STORE = """
if (redis.call('HGET', KEYS[1], '') or '') ~= ARGV[1] then return 0 end
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[5]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
"""
FORGET = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
"""


class ServerRefused(Exception):
    """Redis answers a command of the cache with an error."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A group's hash as it was before a look-up."""

    mark: str
    value: bytes | None = None
    seconds: float = 0.0
    """How long the group is kept by Redis."""


class Cache(Generic[V]):
    """Values of one kind, in groups that are forgotten together: `cache:{name}:{group}` is a hash of them.

    What goes in may be TTL old where Redis was away during a change, and must not be secret: Redis has it in clear.
    It is signed under `secret`: whoever can write to Redis cannot say what a value is.
    A value is never changed by whoever gets it. Without `absent`, what is not there is looked up each time.
    """

    def __init__(
        self,
        name: str,
        kind: type[V],
        redis: Client,
        channels: Channels,
        secret: str,
        *,
        ttl: timedelta = TTL,
        absent: timedelta = timedelta(0),
        most: int = MOST,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.name, self.redis, self.ttl, self.absent = name, redis, ttl, absent
        self.codec: TypeAdapter[V] = TypeAdapter(kind)
        self.signing = hmac.digest(secret.encode(), PURPOSE, "sha256")
        self.known: Known[tuple[str, str], V | None] = Known(
            f"cache:{name}", redis, channels, seconds=ttl.total_seconds(), most=most, clock=clock
        )

    def open(self) -> None:
        self.known.open()

    async def close(self) -> None:
        await self.known.close()

    @property
    def counts(self) -> Counts:
        return self.known.counts

    async def get(self, group: str, key: str, load: Callable[[], Awaitable[V | None]]) -> V | None:
        """The value of a key of a group; `load` asks the database. Raises: what it raises; Redis is done without."""
        return await self.known.get((group, key), partial(self.look_up, group, key, load))

    async def forget(self, group: str) -> None:
        """A group changed, as is committed: in Redis and here it counts now, elsewhere as soon as they hear of it."""
        self.known.forget(group)
        arguments = (token_hex(8), milliseconds(self.ttl), self.known.channel, group)
        try:
            await self.ask(("EVAL", FORGET, 1, self.place(group), *arguments))
        except (ServerRefused, *Unreachable) as error:
            logger.warning("cache.change_not_announced", cache=self.name, group=group, error=repr(error))

    async def look_up(self, group: str, key: str, load: Callable[[], Awaitable[V | None]]) -> Found[V | None]:
        seen = await self.read(group, key)
        if seen and seen.value is not None and (value := self.decoded(group, key, seen.value)) is not None:
            self.counts.shared += 1
            metrics.cache_lookups.labels(self.known.name, "shared").inc()
            return Found(value, group, seen.seconds)
        loaded = await load()
        if loaded is None:
            return Found(None, group, self.absent.total_seconds())
        encoded = self.codec.dump_json(loaded)
        if len(encoded) > MAX_BYTES:
            return Found(loaded, group, 0)
        if seen:
            await self.store(group, key, encoded, seen)
        return Found(loaded, group)

    async def read(self, group: str, key: str) -> Seen | None:
        """None while Redis is away."""
        place = self.place(group)
        try:
            (mark, value), left = await self.ask(("HMGET", place, MARK, key), ("PTTL", place))
        except (ServerRefused, *Unreachable) as error:
            logger.warning("cache.redis_away", cache=self.name, error=repr(error))
            return None
        return Seen((mark or b"").decode(), value, max(left, 0) / 1000)

    async def store(self, group: str, key: str, encoded: bytes, seen: Seen) -> None:
        signed = self.signature(group, key, encoded) + encoded
        arguments = (seen.mark, key, signed, milliseconds(self.ttl), MOST_OF_GROUP)
        try:
            await self.ask(("EVAL", STORE, 1, self.place(group), *arguments))
        except (ServerRefused, *Unreachable) as error:
            logger.warning("cache.redis_away", cache=self.name, error=repr(error))

    async def ask(self, *commands: Command) -> list[Any]:
        answers = await self.redis.ask(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise ServerRefused(str(answer)) from answer
        return answers

    def decoded(self, group: str, key: str, stored: bytes) -> V | None:
        """None for what is not ours, or was stored in another shape by another version of us."""
        signature, encoded = stored[:SIGNATURE_BYTES], stored[SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self.signature(group, key, encoded)):
            return None
        try:
            return self.codec.validate_json(encoded)
        except ValidationError:
            return None

    def signature(self, group: str, key: str, encoded: bytes) -> bytes:
        """Of a value at its place: it is good at no other."""
        return hmac.digest(self.signing, b"\0".join((self.place(group).encode(), key.encode(), encoded)), "sha256")

    def place(self, group: str) -> str:
        return f"cache:{self.name}:{group}"


def milliseconds(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)

"""The one script that appends to logs: many of them in a call, each under its fence."""

from typing import Any

from redis import exceptions

from services.redis import Client, Command, Encoded, bulk
from services.redis import Unreachable as RedisUnreachable
from services.runs.event_log import EventLog
from services.runs.lease import ATTEMPT_OF

APPEND = f"""
{ATTEMPT_OF}
local verdicts, taken, at = {{}}, {{}}, 2
for log = 1, #KEYS / 2 do
    local owner, length = redis.call('GET', KEYS[2 * log - 1]), redis.call('LLEN', KEYS[2 * log])
    local expected = tonumber(ARGV[at + 2])
    if not owner then verdicts[log] = 'missing'
    elseif owner ~= ARGV[at] and attempt_of(owner) <= attempt_of(ARGV[at]) then verdicts[log] = 'held'
    elseif owner ~= ARGV[at] then verdicts[log] = 'lost'
    elseif length < expected then verdicts[log] = 'short'
    elseif length > expected then verdicts[log] = 'longer'
    elseif taken[KEYS[2 * log]] then verdicts[log] = 'longer'
    else verdicts[log], taken[KEYS[2 * log]] = 'ok', true end
    at = at + 4 + ARGV[at + 3]
end
at = 2
for log = 1, #KEYS / 2 do
    local first, last = at + 4, at + 3 + ARGV[at + 3]
    if verdicts[log] == 'ok' then
        for start = first, last, 1000 do
            redis.call('RPUSH', KEYS[2 * log], unpack(ARGV, start, math.min(start + 999, last)))
        end
        redis.call('PEXPIRE', KEYS[2 * log], ARGV[1])
        redis.call('PUBLISH', ARGV[at + 1], 'new')
    end
    at = last + 1
end
return verdicts
"""
"""The atomic step of many logs: fence, expected length (a repeated append cannot double), RPUSH, EXPIRE, PUBLISH.

Keys: lock and list of each log. Arguments: TTL; of each owner, channel, expected length, number of events, events.
What may be refused is asked before anything is written: a call that fails has appended nothing. A list that is named
twice is appended to once, as by two calls.
"""

NUMBERS = b"$12\r\n%012d\r\n$6\r\n%06d\r\n"
"""Expected length and number of events, as wide as they may become."""

Batches = list[tuple[EventLog, list[bytes]]]
"""What is to be appended next to each log."""

LOGS_AT_ONCE = 64
"""How many logs a call of the script appends to: it holds up everybody else."""


class LogScript:
    """The script on one Redis server; `ttl_ms` is how long a list outlives what is appended to it."""

    def __init__(self, redis: Client, ttl_ms: int) -> None:
        self.redis, self.ttl_ms = redis, ttl_ms
        self.script = redis.register_script(APPEND)

    async def append(self, batches: Batches) -> list[Any]:
        """A verdict of the script for each log, or the error for which nothing was appended to it.

        Raises: redis errors when the server cannot be asked.
        """
        calls = [batches[first : first + LOGS_AT_ONCE] for first in range(0, len(batches), LOGS_AT_ONCE)]
        verdicts: list[Any] = []
        for some, answer in zip(calls, await self.redis.ask(list(map(self.appends_of, calls))), strict=True):
            if isinstance(answer, exceptions.NoScriptError):
                await self.redis.script_load(APPEND)
            if not isinstance(answer, Exception):
                verdicts += answer
            elif len(some) == 1 or isinstance(answer, (exceptions.NoScriptError, *RedisUnreachable)):
                verdicts += [answer] * len(some)
            else:
                verdicts += await self.append_each(some)
        return verdicts

    async def append_each(self, batches: Batches) -> list[Any]:
        """One of these logs is at fault that all of them were refused: each in a call of its own."""
        answers = await self.redis.ask([self.appends_of([each]) for each in batches])
        return [answer if isinstance(answer, Exception) else answer[0] for answer in answers]

    def appends_of(self, batches: Batches) -> Command:
        """One call of the script, written out: what is the same each time is encoded once, in small pieces."""
        names: list[bytes] = []
        words: list[bytes] = []
        count = 4
        for log, batch in batches:
            names.append(log.spoken_keys)
            words.append(log.spoken_owner)
            words.append(NUMBERS % (log.length, len(batch)))
            words += map(bulk, batch)
            count += 6 + len(batch)
        script = map(bulk, (b"EVALSHA", self.script.sha.encode(), b"%d" % (2 * len(batches))))
        return Encoded(count, [*script, *names, bulk(b"%d" % self.ttl_ms), *words])

    async def refill(self, log: EventLog, length: int, lost: list[bytes]) -> bool:
        """Append to a list, as long as it is now, what it had before; whether it was taken.

        Raises: redis errors when the server cannot be asked, or refuses.
        """
        arguments: list[str | int | bytes] = [self.ttl_ms, log.owner, log.news, length, len(lost), *lost]
        (verdict,) = await self.script(keys=[log.lock, log.responses], args=arguments)
        return bool(verdict == b"ok")

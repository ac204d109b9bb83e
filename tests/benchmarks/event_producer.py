"""A foreign producer in a process of its own: `python -m tests.benchmarks.event_producer REDIS_URL`, runs on stdin.

It does what CONTRACT section 2 lets anybody do: RPUSH, then PUBLISH `new`. The first line of stdin is
`{"runs": [id], "per_second": of each run, "bytes": of an event}`; it says events until stdin ends.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import orjson
import uvloop

from services.redis import packed

TICK_SECONDS = 0.001
TTL_SECONDS = 3600


class Producer:
    """Says the events of all runs in turn, evenly spread over time."""

    def __init__(self, writer: asyncio.StreamWriter, runs: Sequence[str], size: int) -> None:
        self.writer = writer
        self.keys = [(f"agent_run:{run}:responses", f"agent_run:{run}:new_response") for run in runs]
        self.padding = "x" * max(size - len('{"t":,"padding":""}') - 19, 0)
        self.said = 0

    async def begin(self) -> None:
        """A list that is there already has its TTL from the first event on."""
        for number in range(len(self.keys)):
            self.say(number)
            self.writer.writelines(packed([("EXPIRE", self.keys[number][0], TTL_SECONDS)]))
            await self.writer.drain()
        self.said = 0

    def say(self, number: int) -> None:
        key, channel = self.keys[number % len(self.keys)]
        event = f'{{"t":{time.monotonic_ns()},"padding":"{self.padding}"}}'
        self.writer.writelines(packed([("RPUSH", key, event), ("PUBLISH", channel, "new")]))
        self.said += 1

    async def go_on(self, per_second: float) -> None:
        """For ever: so many events a second of all runs together."""
        began = time.monotonic()
        while True:
            due = int((time.monotonic() - began) * per_second)
            while self.said < due:
                self.say(self.said)
            await self.writer.drain()
            await asyncio.sleep(max((self.said + 1) / per_second - (time.monotonic() - began), TICK_SECONDS))


async def swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(2**16):
        pass


async def main(url: str) -> None:
    order = orjson.loads(sys.stdin.buffer.readline())
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    if address.password:
        writer.writelines(packed([("AUTH", address.password)]))
    writer.writelines(packed([("SELECT", address.path.strip("/") or "0")]))
    producer = Producer(writer, order["runs"], order["bytes"])
    async with asyncio.TaskGroup() as group:
        group.create_task(swallow(reader))
        await producer.begin()
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        group.create_task(producer.go_on(order["per_second"] * len(order["runs"])))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))

"""The least that streams the same: a bare ASGI application that writes the frames on a timer, without any store.

`GET /RUN/RUNS/PER_SECOND/BYTES`: the events of run number RUN of RUNS, as many a second, so many bytes each.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
readers: dict[int, set[Send]] = {}
timers: dict[int, asyncio.Task[None]] = {}


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        await lifespan(receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b"retry: 3000\n\n", "more_body": True})
    if scope["path"] == "/api/health":
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    run, runs, per_second, size = map(int, scope["path"].strip("/").split("/"))
    everybody = readers.setdefault(run, set())
    everybody.add(send)
    if run not in timers:
        timers[run] = asyncio.create_task(tell(everybody, run / runs / per_second, 1 / per_second, "x" * (size - 38)))
    while (await receive())["type"] != "http.disconnect":
        pass
    everybody.discard(send)


async def tell(everybody: set[Send], offset: float, every: float, padding: str) -> None:
    began, number = time.monotonic() + offset, 0
    while True:
        await asyncio.sleep(began + number * every - time.monotonic())
        event = f'id: {number}\ndata: {{"t":{time.monotonic_ns()},"padding":"{padding}"}}\n\n'.encode()
        for send in tuple(everybody):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        number += 1


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return

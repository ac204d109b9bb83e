"""The readers' side of the published design: two pub/sub connections, one LRANGE and its JSON per reader and event."""

import asyncio
import json
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

MAX_CONNECTIONS = 100_000
POLL_SECONDS = 0.5
ENDS = ("STOP", "END_STREAM", "ERROR")


def create_app() -> FastAPI:
    app = FastAPI()
    redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=MAX_CONNECTIONS, protocol=2)

    @app.get("/api/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/agent-run/{run_id}/stream")
    async def stream(run_id: str) -> StreamingResponse:
        return StreamingResponse(events(redis, run_id), media_type="text/event-stream")

    return app


async def events(redis: Redis, run_id: str) -> AsyncIterator[str]:
    key, told = f"agent_run:{run_id}:responses", 0
    heard: asyncio.Queue[str] = asyncio.Queue()
    channels = [redis.pubsub(), redis.pubsub()]
    await channels[0].subscribe(f"agent_run:{run_id}:new_response")
    await channels[1].subscribe(f"agent_run:{run_id}:control")
    listeners = [asyncio.create_task(listen(channels[0], heard)), asyncio.create_task(poll(channels[1], heard))]
    yield "retry: 3000\n\n"
    try:
        word = "new"
        while word not in ENDS:
            for event in await redis.lrange(key, told, -1):
                yield f"id: {told}\ndata: {json.dumps(json.loads(event))}\n\n"
                told += 1
            word = await heard.get()
    finally:
        for listener in listeners:
            listener.cancel()
        for channel in channels:
            await channel.aclose()


async def listen(channel: PubSub, heard: "asyncio.Queue[str]") -> None:
    async for message in channel.listen():
        if message["type"] == "message":
            heard.put_nowait(message["data"])


async def poll(channel: PubSub, heard: "asyncio.Queue[str]") -> None:
    while True:
        message = await channel.get_message(ignore_subscribe_messages=True, timeout=POLL_SECONDS)
        if message:
            heard.put_nowait(message["data"])

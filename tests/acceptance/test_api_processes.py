"""Several API processes behind one port, each with readers and a subscription of its own."""

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest

from services.embedded import ports
from tests.acceptance.client import Client, Stream, until
from tests.acceptance.operators import START_SECONDS, Deployment, Operated

PROCESSES = 2
READERS = 24
TEXT = "demo/lorem?chunks=100000&delay_ms=25"
"""Goes on until the test stops it."""


async def start_two(deployment: Deployment) -> Operated:
    port = ports.pick(set())
    api = deployment.launch(
        "api", "uvicorn", "--factory", "api.app:create_app", "--host", "127.0.0.1", "--port", str(port),
        "--workers", str(PROCESSES), "--loop", "uvloop", "--http", "httptools", "--timeout-graceful-shutdown", "20",
        forked=False,
    )  # fmt: skip
    api.port = port
    await until(lambda: deployment.answers(api), within=START_SECONDS, every=0.05, says="the APIs did not answer")
    return api


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_readers_at_several_processes_see_the_same_and_are_all_sent_on_when_these_stop(
    system: Deployment, client: Client
) -> None:
    api = await start_two(system)
    started = await client.initiate(TEXT)
    user = client.http.headers["Authorization"].removeprefix("Bearer ")
    async with AsyncExitStack() as stack, system.redis() as redis:

        async def join() -> Stream:
            http = await stack.enter_async_context(Client(f"http://127.0.0.1:{api.port}", user))
            return await stack.enter_async_context(http.stream(started.run_id))

        async def all_have_readers() -> bool:
            streams.append(await join())
            channel = f"agent_run:{started.run_id}:new_response"
            return bool((await redis.pubsub_numsub(channel))[0][1] == PROCESSES)

        streams = [await join() for _ in range(READERS)]
        await until(all_have_readers, within=START_SECONDS, every=0.1, says="a process has no readers")
        seen = await asyncio.gather(*(stream.take(30) for stream in streams))
        assert all(events == seen[0] for events in seen)
        api.signal(signal.SIGTERM)
        await asyncio.gather(*(stream.rest() for stream in streams))
        assert {stream.comments[-1] for stream in streams} == {"the server is restarting, reconnect"}
    assert await api.exited(START_SECONDS) == 0
    await client.stop(started.run_id)

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from httpx2 import AsyncClient, TransportError
from pydantic import SecretStr

from services.embedded import ports
from services.settings import MetricsSettings
from tests.services.runs.seeds import eventually
from worker import listener
from worker.listener import Listener

TOKEN = "a-token-of-the-tests"


async def text() -> bytes:
    return b"longrun_processes 3\n"


@asynccontextmanager
async def listening(port: int, group: Path | None = None, token: str = "") -> AsyncIterator[Listener]:
    opened = Listener(MetricsSettings(port=port, token=SecretStr(token)), text, group)
    opened.open()
    try:
        yield opened
    finally:
        await opened.close()


async def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str]:
    async with AsyncClient(trust_env=False, timeout=60) as http:
        answer = await http.request(method, f"http://127.0.0.1:{port}{path}", headers=headers)
        return answer.status_code, answer.text


async def answers(port: int) -> bool:
    try:
        return (await get(port)) == (200, "longrun_processes 3\n")
    except TransportError:
        return False


async def test_a_worker_answers_whoever_may_read_and_nobody_else() -> None:
    port = ports.pick(set())
    async with listening(port):
        await eventually(lambda: answers(port))
        assert await get(port, method="HEAD") == (200, "")
        assert (await get(port, "/"))[0] == 404
        assert (await get(port, method="POST"))[0] == 405
        assert (await get(port, **{"X-Forwarded-For": "10.0.0.1"}))[0] == 404
        assert (await get(port, **{"X-Long": "x" * 2 * listener.HEAD_BYTES}))[0] == 431
    async with listening(port, token=TOKEN):
        await eventually(lambda: port_open(port))
        assert (await get(port))[0] == 401
        assert (await get(port, Authorization=f"Bearer {TOKEN}"))[0] == 200


async def port_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_of_a_group_one_answers_and_another_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "AGAIN_SECONDS", 0.02)
    port = ports.pick(set())
    async with listening(port, tmp_path) as second:
        async with listening(port, tmp_path) as first:
            await eventually(lambda: answers(port))
            assert [each.turn is not None for each in (first, second)].count(True) == 1
            assert not any(each.told for each in (first, second)), "a port that one's own group has is not taken"
        await eventually(lambda: answers(port))


async def test_a_port_that_somebody_else_has_is_told_once_and_taken_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "AGAIN_SECONDS", 0.02)
    port = ports.pick(set())
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
    async with listening(port, tmp_path) as waiting:
        await eventually(lambda: waiting.told)
        other.close()
        await other.wait_closed()
        await eventually(lambda: answers(port))


def test_a_connection_that_says_nothing_holds_up_no_end() -> None:
    async def leave() -> float:
        port = ports.pick(set())
        async with listening(port):
            await eventually(lambda: answers(port))
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            begun = time.monotonic()
        took = time.monotonic() - begun
        writer.close()
        return took

    assert uvloop.run(leave()) < listener.PATIENCE_SECONDS / 2


async def test_those_who_connect_and_say_nothing_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "PATIENCE_SECONDS", 0.2)
    port = ports.pick(set())
    async with listening(port) as opened:
        await eventually(lambda: answers(port))
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * listener.MOST_CONNECTIONS)]
        assert len(opened.connections.tasks) <= listener.MOST_CONNECTIONS
        await eventually(lambda: answers(port))
        for _, writer in silent:
            writer.close()

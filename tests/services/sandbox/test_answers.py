"""What a client makes of an agent that answers wrongly, too much, or never."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from services.sandbox import client
from services.sandbox.client import Client
from services.sandbox.guest import wire
from services.sandbox.protocol import SandboxFailed
from tests.waiting import PATIENT

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def agent(folder: Path, speak: Speak) -> AsyncIterator[Client]:
    """A client of an agent that speaks as it likes."""

    calls: list[asyncio.Task[None]] = []

    async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await wire.read_frame(reader)
            writer.write(wire.frame(wire.BEGUN, b""))
            await speak(reader, writer)

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(asyncio.create_task(call(reader, writer)))
        calls[-1].add_done_callback(lambda _: writer.close())

    async def start() -> None:
        pass

    async with await asyncio.start_unix_server(serve, folder / "s"):
        yield Client(folder, None, start, lambda: "")
        for each in calls:
            each.cancel()
        await asyncio.wait(calls)


def saying(*frames: bytes) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for each in frames:
            writer.write(each)
            await writer.drain()
        await reader.read()

    return speak


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "payload",
    [b"no json", b"[1]", b"null", b"\xff", b"{}", b"[" * 100_000, b'{"file": {"path": 1}}', b'{"file": [1]}'],
)
async def test_an_answer_that_is_none_is_a_failure_of_the_sandbox(tmp_path: Path, payload: bytes) -> None:
    async with agent(tmp_path, saying(wire.frame(wire.JSON, payload))) as sandbox:
        with pytest.raises(SandboxFailed, match="cannot be understood"):
            await sandbox.stat_file("x")


async def test_a_listing_that_is_none_is_a_failure_of_the_sandbox(tmp_path: Path) -> None:
    for listed in (
        b"no json",
        b"5",
        b"[{}]",
        json.dumps([{"path": "a", "is_dir": 0, "size": 1, "modified": "x"}]).encode(),
    ):
        speak = saying(wire.frame(wire.RESULT, listed), wire.frame(wire.JSON, b"{}"))
        async with agent(tmp_path, speak) as sandbox:
            with pytest.raises(SandboxFailed, match="cannot be understood"):
                await sandbox.list_files()


async def test_more_than_was_asked_for_is_not_taken(tmp_path: Path) -> None:
    flood = [wire.frame(wire.RESULT, bytes(1024 * 1024))] * 4
    async with agent(tmp_path, saying(*flood, wire.frame(wire.JSON, b"{}"))) as sandbox:
        with pytest.raises(SandboxFailed, match="more than can be taken"):
            await sandbox.read_file("x", limit=1024)


async def test_a_body_that_nobody_takes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_WITHIN", 0.2)
    async with agent(tmp_path, silent) as sandbox, asyncio.timeout(PATIENT):
        with pytest.raises(SandboxFailed, match="does not answer"):
            await sandbox.write_file("x", bytes(10_000_000))
        with pytest.raises(SandboxFailed, match="does not answer"):
            await sandbox.write_file("x", b"small")

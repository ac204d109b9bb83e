"""Speaks to the agent inside a sandbox, one connection of its Unix socket per call."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.runs.fence import Fence, FenceLost
from services.sandbox.guest import wire
from services.sandbox.protocol import (
    WORKSPACE,
    FileInfo,
    Finished,
    Job,
    OnOutput,
    Pipe,
    SandboxFailed,
    Usage,
)

CHUNK = 256 * 1024
CONNECT_WITHIN = 5.0
LARGEST_RESULT = 64 * 1024 * 1024
ANSWER_WITHIN = 60.0
COMPLAINTS_CHARS = 4_000
NOTES_BYTES = 10_000
LATEST = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()
NO_TEXT = re.compile("[\ud800-\udfff]")
"""What stands for the bytes of a file's name that are no UTF-8."""

Ended = Callable[[], str]


class Gone(Exception):
    """The connection broke before the answer."""


class Absent(Gone):
    """Nobody listens."""


class Connection:
    """One call under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.result = bytearray()
        self.most = LARGEST_RESULT

    async def send(self, kind: bytes, payload: bytes = b"") -> None:
        try:
            self.writer.write(wire.frame(kind, payload))
            await self.writer.drain()
        except OSError as error:
            raise Gone(str(error)) from error

    async def ask(self, op: str, fence: Fence | None, arguments: Mapping[str, Any]) -> None:
        named = [str(fence.run_id), fence.attempt] if fence else None
        await self.send(wire.JSON, json.dumps({"op": op, "fence": named, "with": arguments}).encode())

    async def taken_up(self) -> None:
        """Wait for the agent to begin. Raises: Gone when it did not; SandboxFailed and FenceLost as it says."""
        kind, payload = await self.receive()
        if kind == wire.JSON:
            judged(payload)

    async def data(self, content: AsyncIterator[bytes] | bytes) -> None:
        """Send a body. What the agent says against it meanwhile is read as the answer."""
        with suppress(Gone):
            if isinstance(content, bytes):
                async with in_time():
                    await self.data_piece(content)
            else:
                async for piece in content:
                    async with in_time():
                        await self.data_piece(piece)
            await self.send(wire.END)

    async def data_piece(self, piece: bytes) -> None:
        for start in range(0, len(piece), CHUNK):
            await self.send(wire.DATA, piece[start : start + CHUNK])

    async def receive(self) -> tuple[bytes, bytes]:
        try:
            return await wire.read_frame(self.reader)
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise Gone(str(error)) from error

    async def answer(self, on_output: OnOutput | None = None) -> dict[str, Any]:
        """The answer; output goes to `on_output`, results are collected.

        Raises: Gone; SandboxFailed and FenceLost as the agent says.
        """
        while True:
            kind, payload = await self.receive()
            if kind == wire.JSON:
                return judged(payload)
            if kind == wire.RESULT:
                self.result += payload
                if len(self.result) > self.most:
                    raise SandboxFailed("The sandbox answers with more than can be taken.")
            elif kind == wire.DATA and on_output:
                await on_output(payload)


@contextmanager
def understanding() -> Iterator[None]:
    """An agent that was taken over may answer anything. Raises: SandboxFailed for what is no answer."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise SandboxFailed(f"The sandbox's answer cannot be understood ({type(error).__name__}).") from error


@understanding()
def judged(payload: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(payload)
    if answer.get("error") == "fence":
        raise FenceLost(answer["text"])
    if answer.get("error"):
        raise SandboxFailed(str(answer["text"]))
    return answer


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Raises: SandboxFailed when what is in it takes too long."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            yield
    except TimeoutError:
        raise SandboxFailed("The sandbox does not answer.") from None


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Connection]:
    """Raises: Absent when nobody listens."""
    # By way of the folder's descriptor: a path in a socket's address has at most 107 bytes.
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Absent(str(error)) from error
    try:
        async with asyncio.timeout(CONNECT_WITHIN):
            streams = await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}/s", limit=CHUNK)
    except OSError as error:
        raise Absent(str(error)) from error
    finally:
        os.close(descriptor)
    connection = Connection(*streams)
    try:
        yield connection
    finally:
        connection.writer.close()


async def ask(folder: Path, op: str, **arguments: Any) -> dict[str, Any]:
    """One question without a fence, and its answer. Raises: Gone; SandboxFailed; TimeoutError."""
    async with asyncio.timeout(ANSWER_WITHIN), connected(folder) as connection:
        await connection.ask(op, None, arguments)
        return await connection.answer()


class Client:
    """The sandbox of one project, as `protocol.Sandbox`.

    `start` brings it up again when it is gone; `ended` says once why it ended, empty when nobody knows.
    """

    def __init__(self, folder: Path, fence: Fence | None, start: Callable[[], Awaitable[None]], ended: Ended) -> None:
        self.folder, self.fence, self.start, self.ended = folder, fence, start, ended

    @asynccontextmanager
    async def call(self, op: str, **arguments: Any) -> AsyncIterator[Connection]:
        """A call under way, in a sandbox that is started when it is gone."""
        async with AsyncExitStack() as stack:
            try:
                yield await self.begun(stack, op, arguments)
            except Gone as error:
                raise SandboxFailed(obituary(await asyncio.to_thread(self.ended))) from error

    async def begun(self, stack: AsyncExitStack, op: str, arguments: Mapping[str, Any]) -> Connection:
        """The call, once the agent has taken it up. One that it never took up is made again."""
        try:
            return await self.asked(stack, op, arguments)
        except Gone:
            if self.fence and (why := await asyncio.to_thread(self.ended)):
                raise SandboxFailed(obituary(why)) from None
        await self.start()
        return await self.asked(stack, op, arguments)

    async def asked(self, stack: AsyncExitStack, op: str, arguments: Mapping[str, Any]) -> Connection:
        connection = await stack.enter_async_context(connected(self.folder))
        await connection.ask(op, self.fence, arguments)
        async with in_time():
            await connection.taken_up()
        return connection

    async def ask(self, op: str, *, most: int = LARGEST_RESULT, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        async with self.call(op, **arguments) as connection, in_time():
            connection.most = most
            return await connection.answer(), bytes(connection.result)

    async def exec(
        self,
        command: str,
        *,
        cwd: str = WORKSPACE,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        on_output: OnOutput | None = None,
        max_output: int = 200_000,
    ) -> Finished:
        asked = {"command": command, "cwd": cwd, "env": dict(env or {}), "timeout": timeout, "max_output": max_output}
        async with self.call("exec", **asked, stream=on_output is not None) as connection:
            connection.most = max_output + NOTES_BYTES
            answer = await connection.answer(on_output)
        return finished_of(answer, bytes(connection.result))

    async def start_job(self, name: str, command: str, *, cwd: str = WORKSPACE) -> Job:
        return job_of(*await self.ask("start_job", name=name, command=command, cwd=cwd))

    async def job(self, name: str, *, offset: int = 0) -> Job:
        return job_of(*await self.ask("job", name=name, offset=offset))

    async def jobs(self) -> list[Job]:
        answer, _ = await self.ask("jobs")
        with understanding():
            return [job_of(each, b"") for each in answer["jobs"]]

    async def write_job(self, name: str, data: bytes) -> None:
        async with self.call("write_job", name=name) as connection:
            await connection.data(data)
            async with in_time():
                await connection.answer()

    async def kill_job(self, name: str) -> Job:
        return job_of(*await self.ask("kill_job", name=name))

    @asynccontextmanager
    async def pipe(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> AsyncIterator[Pipe]:
        async with self.call("pipe", argv=list(argv), env=dict(env or {})) as connection:
            await connection.answer()
            yield Streams(connection)

    async def read_file(self, path: str, *, offset: int = 0, limit: int = 10_000_000) -> bytes:
        _, content = await self.ask("read_file", path=path, offset=offset, limit=limit, most=limit)
        return content

    async def write_file(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int | None = 0o644) -> None:
        async with self.call("write_file", path=path, mode=mode) as connection:
            await connection.data(content)
            async with in_time():
                await connection.answer()

    async def delete_file(self, path: str) -> None:
        await self.ask("delete_file", path=path)

    async def list_files(self, path: str = WORKSPACE, *, depth: int = 1, limit: int = 1000) -> list[FileInfo]:
        _, listed = await self.ask("list_files", path=path, depth=depth, limit=limit)
        with understanding():
            return [file_of(each) for each in json.loads(listed)]

    async def stat_file(self, path: str) -> FileInfo | None:
        answer, _ = await self.ask("stat_file", path=path)
        with understanding():
            return file_of(answer["file"]) if answer["file"] else None

    async def usage(self) -> Usage:
        answer, _ = await self.ask("usage")
        with understanding():
            return Usage(int(answer["memory_bytes"]), int(answer["disk_bytes"]), int(answer["processes"]))

    async def connect(self, port: int) -> AbstractAsyncContextManager[Pipe]:
        return self.connection(port)

    @asynccontextmanager
    async def connection(self, port: int) -> AsyncIterator[Pipe]:
        async with self.call("connect", port=port) as connection:
            await connection.answer()
            yield Streams(connection)


class Streams:
    """The `Pipe` of a call."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.over = False
        self.ending = ""

    async def read(self) -> bytes:
        while not self.over:
            kind, payload = await self.connection.receive()
            if kind == wire.DATA and payload:
                return payload
            if kind == wire.JSON:
                with understanding():
                    self.over, self.ending = True, ending_of(json.loads(payload))
        return b""

    async def write(self, data: bytes) -> None:
        await self.connection.data_piece(data)


def ending_of(answer: Mapping[str, Any]) -> str:
    """For people: how the process of a pipe ended; empty for a connection."""
    if answer.get("exit_code") is None:
        return ""
    complaints = str(answer.get("stderr") or "").strip()[-COMPLAINTS_CHARS:]
    return f"its process ended with code {answer['exit_code']}" + (f": {complaints}" if complaints else "")


def obituary(why: str) -> str:
    because = f": {why}" if why else ""
    return f"The sandbox has ended{because}. Its jobs are gone, its files stay; the next call starts it again."


@understanding()
def finished_of(answer: dict[str, Any], output: bytes) -> Finished:
    code = answer["exit_code"]
    return Finished(None if code is None else int(code), output, int(answer["left_out"]))


@understanding()
def job_of(answer: dict[str, Any], output: bytes) -> Job:
    return Job(answer["name"], answer["command"], answer["running"], answer["exit_code"], output, answer["next_offset"])


def file_of(answer: dict[str, Any]) -> FileInfo:
    modified = datetime.fromtimestamp(min(max(answer["modified"], 0), LATEST), UTC)
    return FileInfo(NO_TEXT.sub("\ufffd", answer["path"]), answer["is_dir"], answer["size"], modified)

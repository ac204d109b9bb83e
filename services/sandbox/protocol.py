"""What a sandbox can do, whichever provider runs it: one per project, found again by whoever comes next."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.runs.fence import Fence

WORKSPACE = "/workspace"

GIB = 1024**3
OnOutput = Callable[[bytes], Awaitable[None]]
"""Takes output as it comes (stdout and stderr together); a slow taker slows the command down."""


class SandboxUnavailable(Exception):
    """Nothing here can isolate a sandbox, or it does not start; the text says what is missing. Never run bare."""


class SandboxFailed(Exception):
    """The sandbox could not do what it was asked; the text names the file, job or port."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a sandbox may use."""

    cpus: float = 1.0
    memory_bytes: int = 2 * GIB
    disk_bytes: int = 10 * GIB
    network: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """`exit_code` is None when the command was killed for its time; `output` is bounded, `left_out` counts the rest."""

    exit_code: int | None
    output: bytes
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A background command. `output` begins at the byte asked for (or the oldest kept) and ends at `next_offset`."""

    name: str
    command: str
    running: bool
    exit_code: int | None
    output: bytes
    next_offset: int


@dataclass(frozen=True, slots=True)
class FileInfo:
    """`path` is absolute, inside the workspace."""

    path: str
    is_dir: bool
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    memory_bytes: int
    disk_bytes: int
    processes: int


class Pipe(Protocol):
    """The standard streams of a process in the sandbox."""

    @property
    def ending(self) -> str:
        """Once there is no more to read: how the process ended, with the last of its complaints; empty if unknown."""
        ...

    async def read(self) -> bytes:
        """Some output; empty at its end."""
        ...

    async def write(self, data: bytes) -> None: ...


class Sandbox(Protocol):
    """One project's sandbox in the hands of one attempt (or of the API, without a fence).

    Every call raises SandboxFailed for what the sandbox cannot do, SandboxUnavailable when it is gone and does not come
    back, and FenceLost when a later attempt has spoken to it.
    """

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
        """Run a shell command to its end; cancelling kills it with all that it started."""
        ...

    async def start_job(self, name: str, command: str, *, cwd: str = WORKSPACE) -> Job:
        """Start a command that goes on by itself; its output is kept bounded. It outlives the attempt."""
        ...

    async def job(self, name: str, *, offset: int = 0) -> Job: ...

    async def jobs(self) -> list[Job]: ...

    async def write_job(self, name: str, data: bytes) -> None:
        """Write to the standard input of a job."""
        ...

    async def kill_job(self, name: str) -> Job: ...

    def pipe(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> AbstractAsyncContextManager[Pipe]:
        """A process with open standard streams (an MCP server); it ends with the context."""
        ...

    async def read_file(self, path: str, *, offset: int = 0, limit: int = 10_000_000) -> bytes: ...

    async def write_file(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int | None = 0o644) -> None:
        """Write a file whole or not at all, making its folders. `mode` None keeps that of the file in its place."""
        ...

    async def delete_file(self, path: str) -> None:
        """Delete a file, or a folder with what is in it."""
        ...

    async def list_files(self, path: str = WORKSPACE, *, depth: int = 1, limit: int = 1000) -> list[FileInfo]: ...

    async def stat_file(self, path: str) -> FileInfo | None: ...

    async def usage(self) -> Usage: ...

    async def connect(self, port: int) -> AbstractAsyncContextManager[Pipe]:
        """A connection to a TCP port inside: what a preview is served through."""
        ...


class SandboxProvider(Protocol):
    """Makes, finds and removes sandboxes. They belong to no process of ours and outlive all of them."""

    async def open(self, project_id: UUID, fence: Fence | None = None, spec: Spec | None = None) -> Sandbox:
        """The project's sandbox, found again or created and started; with a fence older attempts are refused from now.

        Raises: SandboxUnavailable; FenceLost.
        """
        ...

    async def stop(self, project_id: UUID) -> None:
        """End its processes; its files stay."""
        ...

    async def delete(self, project_id: UUID) -> None:
        """End its processes and remove its files."""
        ...

    async def reap(self, idle_seconds: float) -> list[UUID]:
        """Stop those that nobody spoke to for so long and that run no job; which they were."""
        ...

"""One supervised process."""

import asyncio
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.embedded.console import EmbeddedError, tail
from services.embedded.orphans import kill_session
from services.parent import dying_with

POLL = 0.02
Probe = Callable[[], Awaitable[bool]]


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds.

    It is polled: what asyncio of Python 3.11 watches a process with is a thread each, beside which forking is unsafe.
    """
    while not condition():  # noqa: ASYNC110 - the condition is about another process
        await asyncio.sleep(POLL)


@dataclass(frozen=True, slots=True)
class Spec:
    """How a process is started, known to be ready, and stopped.

    `log` None leaves the standard streams as they are and keeps the process in `group`, so that a command in the
    foreground has the terminal. Times are in seconds.
    """

    name: str
    argv: Sequence[str | Path]
    env: Mapping[str, str]
    cwd: Path
    log: Path | None
    user: pwd.struct_passwd | None = None
    group: int | None = None
    ready: Probe | None = None
    ready_within: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within: float = 15.0
    stdin: bytes = field(default=b"", repr=False)


class Child:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    def start(self) -> None:
        """Start the process, with its output appended to its log."""
        spec = self.spec
        self.started_at = time.monotonic()
        if spec.log is None:
            self.process = spawn(spec, None)
            return
        with spec.log.open("ab") as log:
            self.process = spawn(spec, log.fileno())
        self.feed()

    def feed(self) -> None:
        stdin = self.process and self.process.stdin
        if stdin:
            with suppress(BrokenPipeError):
                stdin.write(self.spec.stdin)
            with suppress(BrokenPipeError):
                stdin.close()

    @property
    def exit_code(self) -> int | None:
        return self.process.poll() if self.process else None

    @property
    def age(self) -> float:
        return time.monotonic() - self.started_at

    async def exited(self) -> int:
        """Wait for the end: the exit code, negative for a signal."""
        await until(lambda: self.exit_code is not None)
        assert self.exit_code is not None
        return self.exit_code

    async def until_ready(self) -> None:
        """Wait for the probe.

        Raises: EmbeddedError with the tail of the log when the process ends first or the time is over.
        """
        deadline = time.monotonic() + self.spec.ready_within
        while self.spec.ready and not await self.spec.ready():
            if self.exit_code is not None:
                raise EmbeddedError(self.obituary("ended while it started"))
            if time.monotonic() > deadline:
                raise EmbeddedError(self.obituary(f"was not ready within {self.spec.ready_within:.0f} s"))
            await asyncio.sleep(POLL)

    def obituary(self, what: str) -> str:
        code = self.exit_code
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        return f"{self.spec.name} {what}{how}" + (f"\n{tail(self.spec.log)}" if self.spec.log else "")

    def signal(self, signum: int) -> None:
        if self.process and self.exit_code is None:
            self.process.send_signal(signum)

    async def stop(self) -> None:
        """Ask the process to stop, kill it when it does not, and kill what it left behind."""
        if self.process is None:
            return
        self.signal(self.spec.stop_signal)
        try:
            await asyncio.wait_for(self.exited(), self.spec.stop_within)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.exited()
        self.clear()

    def clear(self) -> None:
        """Kill the orphans of a process that has ended."""
        if self.process and self.spec.group is None:
            kill_session(self.process.pid)


def spawn(spec: Spec, output: int | None) -> subprocess.Popen[bytes]:
    user, group = (spec.user.pw_uid, spec.user.pw_gid) if spec.user else (None, None)
    stdin = subprocess.PIPE if spec.stdin else subprocess.DEVNULL
    return subprocess.Popen(  # noqa: S603 - the commands are our own
        [str(part) for part in spec.argv],
        env=dict(spec.env),
        cwd=spec.cwd,
        stdin=stdin if output else None,
        stdout=output,
        stderr=output,
        start_new_session=spec.group is None,
        process_group=spec.group,
        user=user,
        group=group,
        extra_groups=[] if spec.user else None,
        preexec_fn=dying_with(os.getpid(), spec.stop_signal),
    )


async def run_to_end(spec: Spec) -> None:
    """Run a command that ends by itself.

    Raises: EmbeddedError with the tail of its log when it fails or takes longer than `ready_within`.
    """
    child = Child(spec)
    child.start()
    try:
        code = await asyncio.wait_for(child.exited(), spec.ready_within)
    except TimeoutError:
        raise EmbeddedError(child.obituary(f"took longer than {spec.ready_within:.0f} s")) from None
    finally:
        await child.stop()
    if code:
        raise EmbeddedError(child.obituary("failed"))

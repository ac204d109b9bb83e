"""Starts processes in order, restarts those that die, stops all in the reverse order."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from services.embedded import orphans
from services.embedded.child import Child, Spec
from services.embedded.console import Console, EmbeddedError

FIRST_DELAY, LONGEST_DELAY, STEADY_AFTER = 0.5, 30.0, 60.0
BURY_EVERY = 2.0
"""Seconds; a child of our own is asked for its end every few milliseconds (`child.POLL`)."""


T = TypeVar("T")


class Supervisor:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.children: list[Child] = []
        self.keepers: list[asyncio.Task[None]] = []

    async def start(self, spec: Spec) -> None:
        """Start one process, wait until it is ready and keep it running from then on.

        Raises: EmbeddedError when it does not become ready.
        """
        child = Child(spec)
        self.children.append(child)
        child.start()
        await child.until_ready()
        self.keepers.append(asyncio.create_task(self.keep(child)))

    async def keep(self, child: Child) -> None:
        delay = FIRST_DELAY
        while True:
            await child.exited()
            child.clear()
            delay = FIRST_DELAY if child.age > STEADY_AFTER else min(delay * 2, LONGEST_DELAY)
            self.console.say(child.obituary(f"died; it is started again in {delay:g} s"))
            await asyncio.sleep(delay)
            await self.restart(child)

    async def restart(self, child: Child) -> None:
        child.start()
        try:
            await child.until_ready()
        except EmbeddedError as error:
            self.console.say(str(error))
            child.signal(signal.SIGKILL)
        else:
            self.console.say(f"{child.spec.name} is running again")

    async def bury_orphans(self) -> None:
        """Take orphans that have come to us and ended off the process table: what two looks find is nobody else's."""
        found: set[int] = set()
        while True:
            await asyncio.sleep(BURY_EVERY)
            dead = orphans.dead_children()
            orphans.bury(found & dead)
            found = dead

    async def stop_all(self) -> None:
        """Stop every process, the one started last first."""
        for keeper in self.keepers:
            keeper.cancel()
        await asyncio.gather(*self.keepers, return_exceptions=True)
        while self.children:
            await self.children[-1].stop()
            self.children.pop()


async def supervise(console: Console, life: int, body: Callable[[Supervisor], Awaitable[int]]) -> int:
    """Run `body` until it returns, a signal asks to stop or the front dies; then stop everything it started.

    Asking to stop cancels `body`. Returns what `body` returned, 0 when it let itself be cancelled.
    """
    supervisor = Supervisor(console)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, asked.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    loop.add_reader(life, front_is_gone, loop, life, asked)
    work = asyncio.ensure_future(body(supervisor))
    asking = asyncio.create_task(asked.wait())
    supervisor.keepers.append(asyncio.create_task(supervisor.bury_orphans()))
    try:
        await asyncio.wait({work, asking}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            console.say("stopping …")
            work.cancel()
            await asyncio.wait({work})
        return 0 if work.cancelled() else work.result()
    finally:
        asking.cancel()
        await supervisor.stop_all()
        os.close(life)


def front_is_gone(loop: asyncio.AbstractEventLoop, life: int, asked: asyncio.Event) -> None:
    loop.remove_reader(life)
    asked.set()


async def together(*steps: Coroutine[Any, Any, T]) -> list[T]:
    """The results of all steps, run at once; the first error cancels the others and is raised bare."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

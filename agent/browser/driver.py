"""Playwright's driver, one process beside each worker: started when a run first needs a browser, ended when idle."""

import asyncio
import importlib
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.log import logger

if TYPE_CHECKING:
    from playwright.async_api import Playwright

MISSING = (
    "There is no browser: Playwright is not installed on this worker. The operator installs the optional extra "
    "`browser` (pip install 'playwright>=1.65')."
)
LAUNCHER = Path(__file__).with_name("driver.sh")
START_WITHIN = 20.0
IDLE_SECONDS = 60.0
CLOSE_WITHIN = 0.5


class NoDriver(Exception):
    """Playwright cannot be used here; the text says why."""


def installed() -> bool:
    """Whether the extra is, without importing it."""
    return importlib.util.find_spec("playwright") is not None


class Driver:
    """What all runs of a process share; made at boot, it starts nothing until it is used."""

    def __init__(self) -> None:
        self.starting: asyncio.Future[Playwright] | None = None
        self.users = 0
        self.resting: asyncio.TimerHandle | None = None
        self.ending: set[asyncio.Task[None]] = set()
        self.numbers = itertools.count()
        self.folder: Path | None = None

    @asynccontextmanager
    async def used(self) -> AsyncIterator["Playwright"]:
        """Raises: NoDriver."""
        self.users += 1
        if self.resting:
            self.resting.cancel()
        try:
            yield await self.playwright()
        finally:
            self.users -= 1
            if self.users == 0:
                self.resting = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.rest)

    async def playwright(self) -> "Playwright":
        if self.starting is None or (self.starting.done() and broken(self.starting)):
            self.starting = asyncio.ensure_future(started())
        try:
            async with asyncio.timeout(START_WITHIN):
                return await asyncio.shield(self.starting)
        except TimeoutError:
            self.forget()
            raise NoDriver(f"Playwright's driver did not start within {START_WITHIN:g} seconds.") from None

    def socket(self) -> Path:
        """A path for a socket that nobody else can reach."""
        if self.folder is None or not self.folder.is_dir():
            self.folder = Path(tempfile.mkdtemp(prefix="longrun-browser-"))
        return self.folder / f"{next(self.numbers)}"

    def forget(self) -> None:
        """The next user starts another one: this one is gone, or does not answer."""
        starting, self.starting = self.starting, None
        if starting:
            task = asyncio.create_task(stop(starting))
            self.ending.add(task)
            task.add_done_callback(self.ending.discard)

    def rest(self) -> None:
        if self.users == 0:
            self.forget()

    async def close(self) -> None:
        """End it, within half a second: it ends with our process in any case."""
        if self.resting:
            self.resting.cancel()
        self.forget()
        if self.ending:
            await asyncio.wait(self.ending, timeout=CLOSE_WITHIN)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def broken(starting: "asyncio.Future[Playwright]") -> bool:
    return starting.cancelled() or starting.exception() is not None


async def started() -> "Playwright":
    """Loaded in a thread: on the loop its import would stall all runs for half a second. Raises: NoDriver."""
    if not installed():
        raise NoDriver(MISSING)
    os.environ.setdefault("PLAYWRIGHT_NODEJS_PATH", str(LAUNCHER))
    module: Any = await asyncio.to_thread(importlib.import_module, "playwright.async_api")
    try:
        playwright: Playwright = await module.async_playwright().start()
    except Exception as error:
        raise NoDriver(f"There is no browser: Playwright's driver does not start ({error}).") from error
    logger.info("browser.driver_started")
    return playwright


async def stop(starting: "asyncio.Future[Playwright]") -> None:
    if not starting.done():
        starting.cancel()
    try:
        await (await starting).stop()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the boundary around a driver that is given up
        logger.info("browser.driver_gone", error=repr(error))

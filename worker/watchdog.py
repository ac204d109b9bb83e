"""A thread that notices a blocked event loop: says where it stands and ends the process (TRAPS 6)."""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from datetime import timedelta

from services.log import logger

INTERVAL_SECONDS = 1.0


class Watchdog(threading.Thread):
    """Ends the process with status 1 when the loop has not answered for `patience`; its runs go on elsewhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: timedelta) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.loop, self.patience = loop, patience.total_seconds()
        self.answered = time.monotonic()

    def run(self) -> None:
        while not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.answer)
            slept_from = time.monotonic()
            time.sleep(INTERVAL_SECONDS)
            if time.monotonic() - slept_from > 3 * INTERVAL_SECONDS:
                self.answered = time.monotonic()  # this process was stopped itself: start counting again
            elif time.monotonic() - self.answered > self.patience:
                self.end()

    def answer(self) -> None:
        self.answered = time.monotonic()

    def end(self) -> None:
        logger.critical("worker.loop_blocked", seconds=self.patience)
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(1)

"""A thread that notices a dead or blocked event loop: says where every thread stands and ends the process (TRAPS 6)."""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta

from services.log import logger

INTERVAL_SECONDS = 1.0
LAST_WORDS_SECONDS = 5.0


class Watchdog(threading.Thread):
    """Ends the process with a status that is not 0 when the loop has not answered for `patience`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: timedelta) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.loop, self.patience = loop, patience.total_seconds()
        self.interval = min(INTERVAL_SECONDS, self.patience / 10)
        self.answered = time.monotonic()

    def run(self) -> None:
        # Code that keeps the interpreter to itself (a regular expression, say) keeps this thread from running: then
        # the kernel counts, in processor time. Its signal writes the stacks and ends the process.
        faulthandler.register(signal.SIGPROF, file=2, all_threads=True, chain=True)
        woke = time.monotonic()
        while True:
            signal.setitimer(signal.ITIMER_PROF, self.patience)
            self.ask()
            time.sleep(self.interval)
            slept_from, woke = woke, time.monotonic()
            if woke - slept_from > 3 * self.interval:
                self.answered = woke  # this process was stopped itself: start counting again
            elif woke - self.answered > self.patience:
                self.end("worker.loop_blocked")

    def ask(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self.answer)
        except RuntimeError:  # closed: a coroutine raised SystemExit
            self.end("worker.loop_died")

    def answer(self) -> None:
        self.answered = time.monotonic()

    def end(self, event: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, LAST_WORDS_SECONDS)  # ends us if the log is what everybody waits for
        logger.critical(event, seconds=self.patience)
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            stack = "".join(traceback.format_stack(frame))
            logger.critical("worker.stack", thread=names.get(ident, str(ident)), stack=stack)
        os._exit(1)

"""How long pages stand still for what they do themselves: their long tasks, in time on the processor.

What a clock on the wall says is also what other lanes did meanwhile.
"""

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from playwright.async_api import Page

EVERY_SECONDS = 0.02
MS_PER_TICK = 1000 / os.sysconf("SC_CLK_TCK")
WATCH = """() => {
    window.tasks = [];
    const times = ({startTime, duration}) => [performance.timeOrigin + startTime, duration];
    new PerformanceObserver((list) => tasks.push(...list.getEntries().map(times)))
        .observe({type: "longtask", buffered: true});
    window.tasks.length = 0;
}"""
TAKE = "() => tasks.splice(0)"


class Tasks:
    """Of the pages that are watched. A thread notes again and again how much the processor has worked for each."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.looks: list[tuple[float, dict[int, float]]] = []
        """When (milliseconds since 1970), and how long each process had worked by then."""
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look_on, name="tasks", daemon=True)

    async def watch(self, page: Page) -> None:
        with self.lock:
            self.pids |= set(renderers())
        assert self.pids, "no page is shown by a process of ours"
        if not self.looks:
            self.look()
            self.thread.start()
        await page.evaluate(WATCH)

    async def longest(self, page: Page) -> float:
        """In milliseconds, since the last time; 0 when none took over 50."""
        taken: list[tuple[float, float]] = await page.evaluate(TAKE)
        self.look()
        return max((min(took, self.worked(began, began + took)) for began, took in taken), default=0.0)

    def worked(self, begin: float, end: float) -> float:
        """How long at most the processor worked for one of the pages in that time."""
        times = [at for at, _ in self.looks]
        _, before = self.looks[max(bisect_right(times, begin) - 1, 0)]
        _, after = self.looks[min(bisect_left(times, end), len(times) - 1)]
        return max(worked - before.get(pid, worked) for pid, worked in after.items())

    def look_on(self) -> None:
        while not self.over.wait(EVERY_SECONDS):
            self.look()

    def look(self) -> None:
        with self.lock:
            now, known = time.time() * 1000, dict(self.looks[-1][1]) if self.looks else {}
            for pid in self.pids:
                with suppress(OSError):  # it has ended
                    known[pid] = worked_until_now(pid)
            self.looks.append((now, known))

    def end(self) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()


def renderers() -> Iterator[int]:
    """The processes that show pages to us."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any("--type=renderer" in word for word in child.cmdline()):
                yield child.pid


def worked_until_now(pid: int) -> float:
    """Milliseconds of its first thread, which is the one that stands still."""
    after_the_name = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = after_the_name[11:13]
    return (int(user) + int(system)) * MS_PER_TICK

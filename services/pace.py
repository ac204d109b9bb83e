"""How far apart a process reads what it is told: as far as its load makes it worth while."""

from collections.abc import Callable
from time import monotonic, thread_time

LONGEST_SECONDS = 0.012
"""From here on a longer pause saves hardly anything."""
SECONDS_AT_FULL_LOAD = 0.025
"""Measured, for a process with hundreds of busy streams: less is sooner and dearer (docs/adr/0011-readers.md)."""
SHORTEST_SECONDS = 0.001
"""The loop's timers count in milliseconds."""
MEMORY_SECONDS = 0.1
"""How long the past counts for as much as the present: one busy moment is no load."""


class Pace:
    """The pause after a reading of messages, which gathers what comes next; it follows the load of the event loop.

    A reading has a price of its own, whatever it brings: the loop wakes twice, and asks Redis once, for a message as
    for fifty. Read as they come, thousands of messages in a second pay it thousands of times; read p seconds apart,
    1/p times, and each waits for p/2 on average. What that saves is worth most when the process has little time left,
    and nothing when it has plenty, so the pause is the load (CPU seconds of the loop's thread by second) times
    `SECONDS_AT_FULL_LOAD`, whoever causes it: messages, readers, requests.

    That settles by itself: a longer pause makes the load smaller, which makes the pause shorter. With f for the price
    of a reading and b for the share of the core that all else takes, load = b + f/p, and p = SECONDS_AT_FULL_LOAD x
    load has one solution: a process that does nothing else spends about sqrt(f / SECONDS_AT_FULL_LOAD) of its core on
    readings, however many messages there are. A message that comes after a silence never waits.
    """

    def __init__(self, now: Callable[[], float] = monotonic, used: Callable[[], float] = thread_time) -> None:
        self.now, self.used = now, used
        self.load = 0.0
        """The share of its time that the loop's thread worked, smoothed."""
        self.looked_at, self.used_then = now(), used()

    def pause(self) -> float:
        """Seconds to leave what comes to the kernel, after a reading that brought messages; in the loop's thread."""
        looked_at, used = self.now(), self.used()
        passed = looked_at - self.looked_at
        if passed > 0:
            share = (used - self.used_then) / passed
            self.load += (share - self.load) * passed / (passed + MEMORY_SECONDS)
            self.looked_at, self.used_then = looked_at, used
        pause = self.load * SECONDS_AT_FULL_LOAD
        return min(pause, LONGEST_SECONDS) if pause >= SHORTEST_SECONDS else 0.0

"""The clock and the CPU are the test's: what is judged is the law."""

from math import sqrt

import pytest

from services.pace import LONGEST_SECONDS, MEMORY_SECONDS, SECONDS_AT_FULL_LOAD, SHORTEST_SECONDS, Pace


class Thread:
    """A loop's thread: the time, and the CPU that it used so far."""

    def __init__(self) -> None:
        self.now = self.used = 1000.0
        self.pace = Pace(lambda: self.now, lambda: self.used)

    def go_on(self, seconds: float, load: float) -> None:
        self.now += seconds
        self.used += seconds * load

    def read(self, price: float, load: float, count: int = 1000) -> float:
        """So many readings, each as soon as the pause before it is over; the last pause."""
        pause = 0.0
        for _ in range(count):
            pause = self.pace.pause()
            self.go_on(pause, load)
            self.go_on(price, 1.0)
        return pause


def test_a_process_with_little_to_do_does_not_pause() -> None:
    thread = Thread()
    for _ in range(100):
        thread.go_on(0.01, load=0.02)
        assert thread.pace.pause() == 0.0


@pytest.mark.parametrize("load", [0.05, 0.1, 0.25])
def test_the_pause_is_as_long_as_the_load_is_high(load: float) -> None:
    thread = Thread()
    thread.go_on(100 * MEMORY_SECONDS, load)
    assert thread.pace.pause() == pytest.approx(load * SECONDS_AT_FULL_LOAD, rel=0.02)


def test_no_pause_is_longer_than_what_saves_something() -> None:
    thread = Thread()
    thread.go_on(100.0, load=1.0)
    assert thread.pace.pause() == LONGEST_SECONDS


def test_one_busy_moment_is_no_load() -> None:
    thread = Thread()
    thread.go_on(10.0, load=0.0)
    thread.pace.pause()
    thread.go_on(MEMORY_SECONDS / 50, load=1.0)
    assert thread.pace.pause() == 0.0


def test_a_load_that_is_over_is_soon_forgotten() -> None:
    thread = Thread()
    thread.go_on(10.0, load=1.0)
    assert thread.pace.pause() == LONGEST_SECONDS
    thread.go_on(50 * MEMORY_SECONDS, load=0.0)
    assert thread.pace.pause() == 0.0


@pytest.mark.parametrize("price", [0.0002, 0.0005])
@pytest.mark.parametrize("load", [0.0, 0.05, 0.15])
def test_a_flood_settles_where_pause_and_load_agree(price: float, load: float) -> None:
    """The pause makes the load, and the load the pause."""
    settled = Thread().read(price, load)
    share = load * SECONDS_AT_FULL_LOAD
    expected = (share + sqrt(share**2 + 4 * price * SECONDS_AT_FULL_LOAD)) / 2
    assert SHORTEST_SECONDS < settled < LONGEST_SECONDS
    assert settled == pytest.approx(expected, rel=0.1)


def test_time_that_stood_still_changes_nothing() -> None:
    thread = Thread()
    thread.go_on(10.0, load=0.3)
    assert thread.pace.pause() == thread.pace.pause()

import pytest

from tests.benchmarks.simulation.storm import Storm


def storm(jitter: float, busy: float = 0.5) -> Storm:
    return Storm(readers=2000, processes=4, retry=3.0, jitter=jitter, open_cpu=0.002, busy=busy)


def test_readers_who_come_back_in_one_moment_wait_for_each_other() -> None:
    back = storm(jitter=0.0).back_after()
    assert len(back) == 2000
    assert min(back) >= 3.0
    assert max(back) - 3.0 == pytest.approx(2000 / 4 * 0.002 / 0.5, rel=0.15)


def test_readers_who_come_back_spread_out_hardly_wait() -> None:
    back = storm(jitter=0.5, busy=0.1).back_after()
    assert min(back) >= 1.5
    assert max(back) <= 4.5 + 0.1

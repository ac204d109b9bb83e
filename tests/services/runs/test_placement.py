from collections import Counter
from uuid import UUID, uuid5

from services.runs.placement import choose

SPACE = UUID(int=0)
RUNS = [uuid5(SPACE, str(number)) for number in range(3000)]


def test_runs_are_spread_evenly() -> None:
    counts = Counter(choose(["one", "two", "three"], run_id) for run_id in RUNS)
    assert set(counts) == {"one", "two", "three"}
    assert all(abs(count - 1000) < 100 for count in counts.values())  # four standard deviations are 103


def test_a_server_that_is_added_takes_only_its_share_and_gives_it_back() -> None:
    before = {run_id: choose(["one", "two"], run_id) for run_id in RUNS}
    after = {run_id: choose(["two", "three", "one"], run_id) for run_id in RUNS}
    moved = [run_id for run_id in RUNS if before[run_id] != after[run_id]]
    assert {after[run_id] for run_id in moved} == {"three"}
    assert abs(len(moved) - 1000) < 100


def test_a_place_is_the_same_for_ever() -> None:
    assert [choose(["one", "two", "three"], UUID(int=number)) for number in range(6)] == PLACES


PLACES = ["three", "one", "two", "three", "two", "two"]

from dataclasses import replace

import pytest

from tests.benchmarks import sizing
from tests.benchmarks.sizing import Load


def between(begin: str, end: str) -> str:
    return sizing.DOCUMENT.read_text().partition(begin)[2].partition(end)[0].strip()


def test_the_document_shows_what_the_figures_come_to() -> None:
    """`python -m tests.benchmarks.sizing` writes them anew."""
    assert between(*sizing.FIGURES_HERE) == sizing.figures().strip()
    assert between(*sizing.NEEDS_HERE) == sizing.needs().strip()


@pytest.mark.parametrize("times", [2, 4])
def test_what_a_load_takes_grows_with_it(times: int) -> None:
    one, many = Load(by_run=True), Load(runs=1000 * times, readers=100_000 * times, by_run=True)
    for name, _, pick in sizing.NEEDS:
        if name not in ("upkeep statements", "Redis servers"):  # they grow with processes times servers, and in steps
            assert pick(many) == pytest.approx(times * pick(one), rel=0.1), name


def test_readers_of_a_run_in_one_process_cost_redis_no_more_than_one_reader() -> None:
    load = Load(by_run=True)
    assert load.redis_commands == replace(load, readers=1000).redis_commands < Load().redis_commands / 10

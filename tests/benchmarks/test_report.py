"""What a report looks like on the terminal, in JSON and drawn."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest

from tests.benchmarks.circumstances import machine
from tests.benchmarks.drawing import draw
from tests.benchmarks.report import Circumstances, Plot, Report, Row, Series, as_json, shares
from tests.benchmarks.table import show, shown

ALONE = Row("runs", "runs/s", 61.8)
COMPARED = Row("p50", "ms", 12.0, limit=0.5, reference=96.0, group="in text")
PLOT = Plot("Delay", "readers", "ms from POST", [Series("Longrun", [1, 10, 100], [2, 4, 8]), shares("limit", [3, 1])])
REPORT = Report("Two figures", [ALONE, COMPARED], [PLOT], ["limit: the least that does the job"])
CIRCUMSTANCES = Circumstances(
    benchmark="delays",
    command="./dev bench delays",
    seed=7,
    began_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    seconds=1.5,
    machine=machine(),
    versions={"python": "3.11.2"},
)


def table_of(report: Report) -> list[list[str]]:
    """The lines, split at runs of spaces."""
    shown_on = io.StringIO()
    show(report, shown_on)
    return [[cell for cell in line.split("  ") if cell.strip()] for line in shown_on.getvalue().splitlines()]


def test_the_table_says_limit_and_reference_with_their_ratios() -> None:
    lines = [[cell.strip() for cell in line] for line in table_of(REPORT)]
    assert lines[0] == ["Two figures"]
    assert ["limit", "Longrun", "reference", "Longrun ÷ limit", "reference ÷ Longrun", "unit"] in lines
    assert ["runs", "61.8", "runs/s"] in lines
    assert lines.index(["in text"]) < lines.index(["p50", "0.500", "12", "96", "24", "8", "ms"])
    assert lines[-1] == ["limit: the least that does the job"]


def test_the_table_has_no_column_for_what_was_not_measured() -> None:
    lines = [[cell.strip() for cell in line] for line in table_of(replace(REPORT, rows=[ALONE]))]
    assert ["Longrun", "unit"] in lines


@pytest.mark.parametrize(
    ("figure", "text"),
    [(None, ""), (0, "0"), (200, "200"), (12345.6, "12,346"), (61.84, "61.8"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_a_figure_has_three_digits_that_count(figure: float | None, text: str) -> None:
    assert shown(figure) == text


def test_the_json_holds_rows_ratios_series_and_circumstances() -> None:
    said = orjson.loads(as_json(REPORT, CIRCUMSTANCES))
    assert {name: said[name] for name in ("benchmark", "command", "seed", "began_at", "seconds", "title")} == {
        "benchmark": "delays",
        "command": "./dev bench delays",
        "seed": 7,
        "began_at": "2026-01-02T03:04:05Z",
        "seconds": 1.5,
        "title": "Two figures",
    }
    assert said["rows"][1] == {
        "group": "in text",
        "name": "p50",
        "unit": "ms",
        "limit": 0.5,
        "longrun": 12.0,
        "reference": 96.0,
        "longrun_by_limit": 24.0,
        "reference_by_longrun": 8.0,
    }
    assert said["rows"][0]["longrun_by_limit"] is None
    assert said["plots"][0]["series"][1] == {"name": "limit", "x": [1, 3], "y": [50.0, 100.0]}


def test_the_json_has_every_name_that_its_docstring_lists_and_no_other() -> None:
    documented = as_json.__doc__ or ""
    said = orjson.loads(as_json(REPORT, CIRCUMSTANCES))
    assert [name for name in names_in(said, besides={"versions"}) if name not in documented] == []
    assert set(said["machine"]) == {"system", "architecture", "processor", "cores", "memory_gib", "load"}


def names_in(value: Any, *, besides: set[str]) -> list[str]:
    if isinstance(value, Mapping):
        inner = [name for key, part in value.items() if key not in besides for name in names_in(part, besides=besides)]
        return [*value, *inner]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [name for part in value for name in names_in(part, besides=besides)]
    return []


def test_the_plot_names_its_axes_and_lines_and_is_drawn_the_same_each_time() -> None:
    picture = draw(REPORT)
    for text in ("Two figures", "Delay", "readers", "ms from POST", "Longrun", "limit"):
        assert f"<!-- {text} -->".encode() in picture
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert draw(REPORT) == picture


def test_logarithmic_axes_are_labelled_with_whole_numbers() -> None:
    wide = Plot("Delay", "readers", "ms", [Series("Longrun", [1, 100], [1, 1000])], True, True)
    picture = draw(replace(REPORT, plots=[wide, PLOT]))
    for text in ("1", "10", "100", "1000"):
        assert f"<!-- {text} -->".encode() in picture

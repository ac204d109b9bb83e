"""What is said of performance in docs/ is what the kept reports say."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.benchmarks import pages
from tests.benchmarks.report import as_json
from tests.benchmarks.test_report import CIRCUMSTANCES, REPORT

OURS = replace(CIRCUMSTANCES, benchmark="stream", command="./dev bench stream --scale 4")


def left(folder: Path, name: str, circumstances: object = OURS, report: object = REPORT) -> None:
    """As a benchmark leaves its report."""
    (folder / f"{name}.json").write_bytes(as_json(report, circumstances))  # type: ignore[arg-type]
    (folder / f"{name}.svg").write_text("<svg/>")


def test_the_page_of_performance_is_what_its_reports_say() -> None:
    says = "write it anew: python -m tests.benchmarks.pages"
    assert pages.DOCUMENT.read_text() == pages.text(pages.kept()), says


def test_every_file_beside_the_page_is_part_of_it_and_tells_no_path() -> None:
    kept = pages.kept()
    assert {path.name for path in pages.KEPT.iterdir()} == {
        f"{one.name}{ending}" for one in kept for ending in (".json", ".svg")
    }
    assert [path.name for path in pages.KEPT.iterdir() if pages.A_PATH.search(path.read_bytes())] == []
    assert all(set(one.said["machine"]) == set(CIRCUMSTANCES.machine) for one in kept)


def test_a_report_has_its_figures_ratios_notes_plot_and_circumstances_on_the_page(tmp_path: Path) -> None:
    left(tmp_path, "stream__scale4")
    page = pages.text(list(pages.reports_in(tmp_path)))
    for line in (
        "## stream: Two figures",
        "`./dev bench stream --scale 4`",
        "### in text",
        "| p50 | 0.500 | 12 | 96 | 24 | 8 | ms |",
        "| runs | 61.8 | runs/s |",
        "- limit: the least that does the job",
        "![Delay](performance/stream-scale-4.svg)",
    ):
        assert line in page.splitlines()
    assert "2026-01-02, 2 s with start-up, seed 7;" in page
    assert "python 3.11.2." in page
    assert f"Measured on {CIRCUMSTANCES.machine['cores']} cores of {CIRCUMSTANCES.machine['processor']}" in page


def test_the_newest_report_of_each_command_is_kept_and_other_files_are_left(tmp_path: Path) -> None:
    folder, kept = tmp_path / "left", tmp_path / "kept"
    folder.mkdir()
    newer = replace(OURS, began_at=OURS.began_at + timedelta(hours=1), seed=8)
    left(folder, "stream-a", newer)
    left(folder, "stream-b")
    left(folder, "stream", replace(OURS, command="./dev bench stream"))
    left(folder, "profile")
    (folder / "idle.json").write_bytes(as_json(REPORT, OURS))  # without a plot: it did not come to its end
    for one in pages.newest(pages.reports_in(folder)):
        pages.keep(one, kept)
    found = pages.kept(kept)
    assert [(one.name, one.said["seed"]) for one in found] == [("stream", 7), ("stream-scale-4", 8)]
    assert len(list(kept.iterdir())) == 4
    assert [one.said["seed"] for one in pages.reports_in(folder / "stream-a.json")] == [8]


@pytest.mark.parametrize(
    ("command", "note"),
    [("./dev bench stream", "kept in /home/somebody/x.json"), ("./dev bench stream --url … --token …", "")],
)
def test_a_report_that_tells_a_path_or_that_nobody_can_repeat_is_refused(
    tmp_path: Path, command: str, note: str
) -> None:
    left(tmp_path, "stream", replace(OURS, command=command), replace(REPORT, notes=[note]))
    [one] = pages.reports_in(tmp_path)
    with pytest.raises(ValueError, match=r"tells a path|cannot measure"):
        pages.keep(one, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()

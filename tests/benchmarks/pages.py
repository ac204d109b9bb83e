"""docs/performance.md, written from the reports of `./dev bench`: `python -m tests.benchmarks.pages [REPORT|FOLDER …]`.

Reports are as the benchmarks leave them, a plot beside each: the newest of each command goes into docs/performance/, in
the place of an older one. Without any the page is written from those that are there.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from services.embedded.console import fail
from services.embedded.environment import CHECKOUT
from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.report import Report, Row
from tests.benchmarks.table import FIGURES, shown

DOCUMENT = CHECKOUT / "docs" / "performance.md"
KEPT = CHECKOUT / "docs" / "performance"
NAMES = [benchmark.name for benchmark in BENCHMARKS]
FIELDS = ("group", "name", "unit", "limit", "longrun", "reference")
A_PATH = re.compile(rb"(?<![\w:/.])/(?:home|mnt|opt|root|srv|tmp|usr|var|work|Users)/")
HEAD = """\
# Performance

What `./dev bench` measured, and on what. The page is written by `python -m tests.benchmarks.pages` from the reports in
[performance/](performance), which have every figure in full and every line of the plots; a test compares them.
[scaling.md](scaling.md) says what the figures come to for an installation, and [reliability.md](reliability.md) what
happens when something breaks.

- **limit** is the least that does the job: a bare program without Longrun's guarantees, on the same machine in the same
  minutes. **Longrun ÷ limit** of 1 would be perfect; what it is instead is what the guarantees cost. A limit that has
  no store says what the stores cost too: most of all in latencies, which are then those of one process.
- **reference** is the published design of such a backend, with its own use of Redis and SSE, under the same load.
  **reference ÷ Longrun** says how many times more it takes (for shares and rates that should be high: less).
- Which program each of the two is, and what a figure means, stands below its table. What was not measured is empty.

These are figures of small machines, on which the servers, Longrun, and the readers and callers that load it share the
processors: absolute figures are worse than those of an installation with machines of their own, and vary by some
percent from one time to the next. The ratios are of the same minutes, and travel better. A version that ends in
`-dirty` is of a checkout with changes. To measure again on yours: the command above each table.
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One report as it is kept: `said` is the JSON that `tests.benchmarks.report.as_json` writes."""

    said: dict[str, Any]
    picture: Path

    @property
    def benchmark(self) -> str:
        return str(self.said["benchmark"])

    @property
    def command(self) -> str:
        return str(self.said["command"])

    @property
    def began_at(self) -> datetime:
        return datetime.fromisoformat(self.said["began_at"])

    @property
    def name(self) -> str:
        """Of its files: the command without what every command has."""
        return re.sub(r"[^a-z0-9]+", "-", self.command.removeprefix("./dev bench ").lower()).strip("-")

    @property
    def report(self) -> Report:
        rows = [Row(**{field: row[field] for field in FIELDS}) for row in self.said["rows"]]
        return Report(self.said["title"], rows, [], self.said["notes"])


def main(arguments: Sequence[str]) -> int:
    found = newest(one for given in arguments for one in reports_in(Path(given)))
    if arguments and not found:
        fail("there is no report with its plot")
        return 1
    for one in found:
        keep(one)
    DOCUMENT.write_text(text(kept()))
    return 0


def reports_in(place: Path) -> Iterator[Measured]:
    """The reports of our benchmarks, named as these are (`stream.json`, `stream__scale4.json`), that have a plot."""
    for path in [place] if place.is_file() else sorted(place.glob("*.json")):
        picture = path.with_suffix(".svg")
        if re.split(r"[^a-z]", path.stem)[0] in NAMES and picture.exists():
            yield Measured(orjson.loads(path.read_bytes()), picture)


def newest(reports: Iterable[Measured]) -> list[Measured]:
    """Of each command the last."""
    return list({one.command: one for one in sorted(reports, key=lambda each: each.began_at)}.values())


def keep(one: Measured, folder: Path = KEPT) -> None:
    """Raises: ValueError for a report that tells a path, or of an instance that nobody can measure again."""
    figures, picture = orjson.dumps(one.said, option=orjson.OPT_APPEND_NEWLINE), one.picture.read_bytes()
    if "--url" in one.command:
        raise ValueError(f"{one.command}: whoever reads it cannot measure that instance")
    if found := A_PATH.search(figures) or A_PATH.search(picture):
        raise ValueError(f"{one.command}: its report tells a path: {found[0].decode()}")
    folder.mkdir(exist_ok=True)
    (folder / f"{one.name}.json").write_bytes(figures)
    (folder / f"{one.name}.svg").write_bytes(picture)


def kept(folder: Path = KEPT) -> list[Measured]:
    """In the order in which `./dev bench` lists them, a plain command before its variants."""
    return sorted(reports_in(folder), key=lambda one: (NAMES.index(one.benchmark), len(one.name), one.name))


def text(reports: Sequence[Measured]) -> str:
    return "\n".join([HEAD, *machines(reports), *(line for one in reports for line in section(one))])


def machines(reports: Sequence[Measured]) -> Iterator[str]:
    """Each once."""
    known = dict.fromkeys(machine_of(one) for one in reports)
    yield from (f"Measured on {machine}." for machine in known)
    yield ""


def machine_of(one: Measured) -> str:
    said = one.said["machine"]
    return (
        f"{said['cores']} cores of {said['processor']} ({said['architecture']}), {said['memory_gib']} GiB,"
        f" {said['system']}"
    )


def section(one: Measured) -> Iterator[str]:
    report = one.report
    yield from (f"## {one.benchmark}: {report.title}", "", f"`{one.command}`", "")
    yield from (circumstances(one), "")
    for group in dict.fromkeys(row.group for row in report.rows):
        yield from ([f"### {group}", ""] if group else [])
        yield from table([row for row in report.rows if row.group == group])
    yield from (*(f"- {note}" for note in report.notes), "")
    plots = "; ".join(plot["title"] for plot in one.said["plots"])
    yield from (f"![{plots}](performance/{one.name}.svg)", "")


def circumstances(one: Measured) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(one.said["versions"].items()))
    return (
        f"{one.began_at:%Y-%m-%d}, {one.said['seconds']:,.0f} s with start-up, seed {one.said['seed']}; load average of"
        f" the minute before: {one.said['machine']['load']}; {versions}. [All figures](performance/{one.name}.json)"
    )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The columns that any of the rows has a figure for."""
    figures = {name: pick for name, pick in FIGURES.items() if any(pick(row) is not None for row in rows)}
    yield f"| | {' | '.join(figures)} | unit |"
    yield f"| --- | {' | '.join('---:' for _ in figures)} | --- |"
    for row in rows:
        yield f"| {row.name} | {' | '.join(shown(pick(row)) for pick in figures.values())} | {row.unit} |"
    yield ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A report as a table on the terminal."""

from collections.abc import Callable, Sequence
from math import floor, log10
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.benchmarks.report import Report, Row

PLAIN_WIDTH = 160
DIGITS = 3
FIGURES: dict[str, Callable[[Row], float | None]] = {
    "limit": lambda row: row.limit,
    "Longrun": lambda row: row.longrun,
    "reference": lambda row: row.reference,
    "Longrun ÷ limit": lambda row: row.longrun_by_limit,
    "reference ÷ Longrun": lambda row: row.reference_by_longrun,
}


def show(report: Report, stream: TextIO) -> None:
    """Print the table and, below it, what its figures mean."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(report.title, style="bold", markup=False)
    console.print(table(report))
    for note in report.notes:
        console.print(f"  {note}", markup=False)


def table(report: Report) -> Table:
    """limit · Longrun · reference · ratios: those columns that any row has a figure for."""
    figures = {name: pick for name, pick in FIGURES.items() if any(pick(row) is not None for row in report.rows)}
    made = Table(box=SIMPLE_HEAD)
    made.add_column("")
    for name in figures:
        made.add_column(name, justify="right")
    made.add_column("unit")
    for row, heading in zip(report.rows, headings(report.rows), strict=True):
        if heading:
            made.add_section()
            made.add_row(heading, style="bold")
        made.add_row(indented(row), *(shown(pick(row)) for pick in figures.values()), row.unit)
    return made


def headings(rows: Sequence[Row]) -> list[str]:
    """For each row the group that begins with it, or nothing."""
    before = ["", *(row.group for row in rows)]
    return [row.group if row.group != last else "" for row, last in zip(rows, before, strict=False)]


def indented(row: Row) -> str:
    return f"  {row.name}" if row.group else row.name


def shown(figure: float | None) -> str:
    """Three digits that count; whole numbers whole."""
    if figure is None:
        return ""
    if figure == int(figure):
        return f"{figure:,.0f}"
    return f"{figure:,.{max(0, DIGITS - 1 - floor(log10(abs(figure))))}f}"

"""What operator commands print: tables for people, one JSON document for scripts, and never a secret."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160
HIDDEN = "***"
SHOWN_LEVELS = 50
SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|credential|authori[sz]ation|cookie|api_?-?key|private_?-?key", re.I
)
SECRET_TEXT = (
    (re.compile(r"(\w://[^\s:/@]*:)[^\s@]+(@)"), rf"\1{HIDDEN}\2"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]+", re.I), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(sk|pk)[-_][\w-]{6,}(:sk_[\w-]+)?"), HIDDEN),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), HIDDEN),
    (
        re.compile(
            r"""((?:password|passwd|secret|token|credential|authorization|api_?-?key)\w*["']?\s*[:=]\s*)("[^"]*"?|'[^']*'?|[^\s,;&}]+)""",
            re.I,
        ),
        rf"\1{HIDDEN}",
    ),
)


class Screen(Console):
    def on_broken_pipe(self) -> None:
        """The end of the command is not decided here. Raises: BrokenPipeError."""
        raise BrokenPipeError


class Output:
    """Where a command says what it found or did."""

    def __init__(self) -> None:
        self.console = Screen(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)

    def document(self, content: Any) -> None:
        """The whole answer of a command, for scripts."""
        sys.stdout.write(json.dumps(content, indent=2, default=plain) + "\n")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Its title alone when there are no rows."""
        rows = list(rows)
        if not rows:
            self.say(title)
            return
        self.say(title)  # one of the table's own is broken to the table's width
        table = Table(*columns)
        table.columns[0].no_wrap = True
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print(table)

    def say(self, sentence: str) -> None:
        self.console.print(Text(printable(sentence)))

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar on standard error, for whoever watches; what it gives is told how much more was done."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)

    def fail(self, sentence: str) -> None:
        """One error line."""
        sys.stderr.write(f"admin: {printable(sentence)}\n")


def plain(value: Any) -> Any:
    """What JSON has no word for: times as ISO 8601, durations in seconds."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def printable(text: str) -> str:
    """Without characters that would move the terminal's cursor or change its colours."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def without_secrets(value: Any, levels: int = SHOWN_LEVELS) -> Any:
    """A copy of JSON-like data in which whatever looks like a secret is hidden, by its name or by its shape.

    What is nested deeper than `levels` is hidden too: no part of a command could walk down there.
    """
    if levels == 0 and isinstance(value, dict | list | tuple):
        return HIDDEN
    if isinstance(value, dict):
        return {
            without_secrets(str(name)): HIDDEN
            if SECRET_NAME.search(str(name)) and item
            else without_secrets(item, levels - 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, levels - 1) for item in value]
    if isinstance(value, str):
        for pattern, hidden in SECRET_TEXT:
            value = pattern.sub(hidden, value)
    return value


def ago(moment: datetime | None, now: datetime) -> str:
    """`3 min ago`, for tables."""
    return "?" if moment is None else f"{lasting(now - moment)} ago"


def lasting(span: timedelta) -> str:
    """`3 min`, for tables."""
    seconds = max(span / timedelta(seconds=1), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"

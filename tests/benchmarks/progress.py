"""How far a benchmark is: a live bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Advance = Callable[[], None]
EVERY_SECONDS = 5.0


class Progress:
    """`every` is how many seconds apart the lines are when `stream` is no terminal."""

    def __init__(self, stream: TextIO, every: float = EVERY_SECONDS) -> None:
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.every = every

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)

    def steps(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """`with progress.steps("stops", 300) as advance:`, where `advance()` is called after each of them."""
        return self.bar(what, total) if self.console.is_terminal else self.lines(what, total)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)

    @contextmanager
    def lines(self, what: str, total: int) -> Iterator[Advance]:
        began = said = time.monotonic()
        done = 0

        def advance() -> None:
            nonlocal done, said
            done += 1
            if time.monotonic() - said >= self.every or done == total:
                said = time.monotonic()
                self.say(f"  {what}: {done} of {total} after {said - began:.1f} s")

        yield advance

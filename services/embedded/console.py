"""What `./dev` says to whoever runs it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


class EmbeddedError(Exception):
    """A sentence for the person at the terminal: what went wrong and, where there is one, what to do."""


class Console:
    """Lines of progress on one stream (standard output, or standard error beside another command's output)."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def say(self, line: str = "") -> None:
        with suppress(OSError):  # a reader that went away (`| head`) must not stop the servers
            self.stream.write(line + "\n")
            self.stream.flush()

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[None]:
        """Say `name` with the seconds it took, when it succeeded."""
        began = time.monotonic()
        yield
        self.say(f"  {name:<10} {time.monotonic() - began:5.1f} s   {detail}".rstrip())


def fail(sentence: str) -> None:
    """Write one error line."""
    Console(sys.stderr).say(f"dev: {sentence}")


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented, under its name; a hint when it is empty."""
    try:
        text = log.read_text(errors="replace").rstrip().splitlines()[-lines:]
    except OSError:
        text = []
    body = "\n".join(f"    {line}" for line in text) or "    (nothing was logged)"
    return f"  {log}:\n{body}"

"""The shape of a benchmark."""

from argparse import ArgumentParser
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.benchmarks.report import Report
from tests.benchmarks.session import Session


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One subcommand. `run` measures; servers, progress, table and files are the session's."""

    name: str
    summary: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Session], Awaitable[Report]]

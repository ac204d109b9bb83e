"""`./dev bench NAME …`: measures private servers, or the running instance that --url and --token name."""

import asyncio
import platform
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.embedded.cli import on_state
from services.embedded.console import Console, fail
from services.embedded.foreground import TERMINATED
from services.embedded.state import DEFAULT
from tests.benchmarks import (
    burst,
    chaos,
    chunks,
    command_line,
    idle,
    queries,
    readers,
    simulate,
    start,
    stop,
    stream,
    table,
    write,
)
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.circumstances import machine
from tests.benchmarks.progress import Progress
from tests.benchmarks.report import Circumstances, Report, as_json
from tests.benchmarks.session import Session

BENCHMARKS = (
    readers.BENCHMARK,
    chaos.BENCHMARK,
    chunks.BENCHMARK,
    queries.BENCHMARK,
    stream.BENCHMARK,
    idle.BENCHMARK,
    simulate.BENCHMARK,
    start.BENCHMARK,
    burst.BENCHMARK,
    stop.BENCHMARK,
    write.BENCHMARK,
)
RESULTS = DEFAULT / "bench"


def main(argv: Sequence[str]) -> int:
    """Run one benchmark; returns the exit code (2 when the command was not understood)."""
    name, arguments = (argv[0], argv[1:]) if argv else ("help", [])
    benchmark = next((one for one in BENCHMARKS if one.name == name), None)
    if benchmark:
        return behind_front(benchmark, command_line.parse(benchmark, arguments))
    if name in ("help", "--help", "-h"):
        Console(sys.stdout).say(command_line.listing(BENCHMARKS))
        return 0
    fail(f"there is no benchmark {name!r}; there are")
    Console(sys.stderr).say(command_line.listing(BENCHMARKS))
    return 2


def behind_front(benchmark: Benchmark, options: Namespace) -> int:
    """Measure; whatever is started for it ends with this command, however that ends."""
    return on_state(
        Console(sys.stderr),
        Path(tempfile.mkdtemp(prefix="longrun-")),
        lambda supervisor, state: measure(benchmark, Session(options, Progress(sys.stderr), supervisor, state)),
        throw_away=True,
    )


async def measure(benchmark: Benchmark, session: Session) -> int:
    """Run the benchmark, show what it found and write it down."""
    began_at, began, facts = datetime.now(UTC), time.monotonic(), machine()
    try:
        report = await benchmark.run(session)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task and task.cancelling():
            return TERMINATED
        raise RuntimeError("nobody has asked for it to stop, and still something in it was cancelled") from error
    command = command_line.command(benchmark, session.options)
    circumstances = Circumstances(
        benchmark.name,
        command,
        session.options.seed,
        began_at,
        seconds=round(time.monotonic() - began, 1),
        machine=facts,
        versions={"python": platform.python_version(), **session.versions},
    )
    table.show(report, sys.stdout)
    for path in keep(report, circumstances, session.options):
        session.progress.say(f"wrote {path}")
    return 0


def keep(report: Report, circumstances: Circumstances, options: Namespace) -> tuple[Path, Path]:
    """Write the JSON and the SVG; returns where they are."""
    from tests.benchmarks.drawing import draw  # noqa: PLC0415 - takes a second, which a mistyped option need not wait

    name = f"{circumstances.benchmark}-{circumstances.began_at:%Y%m%dT%H%M%SZ}"
    RESULTS.mkdir(parents=True, exist_ok=True)
    figures, picture = options.json or RESULTS / f"{name}.json", options.svg or RESULTS / f"{name}.svg"
    figures.write_bytes(as_json(report, circumstances))
    picture.write_bytes(draw(report))
    return figures, picture


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

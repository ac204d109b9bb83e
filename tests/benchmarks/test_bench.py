"""`./dev bench` as its user runs it, on servers of its own."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from services.embedded.orphans import descendants, process_table
from tests.benchmarks import simulate, sizing
from tests.services.embedded.conftest import bare_environment, line_starting

WITHIN_SECONDS = 90.0
Bench = Callable[..., subprocess.Popen[str]]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Starts `./dev bench` without its shell part, in a folder of the test's own."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.embedded", "bench", *map(str, arguments)],
            env=bare_environment(),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        with process, suppress(subprocess.TimeoutExpired):
            process.wait(60)


@pytest.mark.slow
async def test_stops_are_measured_beside_their_limit_and_written_down(bench: Bench, tmp_path: Path) -> None:
    process = bench("stops", "--stops", "3", "--broker", "redis", "--json", "figures.json", "--svg", "plot.svg")
    output, _ = await asyncio.to_thread(process.communicate, timeout=WITHIN_SECONDS)
    assert process.returncode == 0, output
    assert "Longrun ÷ limit" in output
    assert f"wrote {tmp_path / 'figures.json'}" in output
    said = orjson.loads((tmp_path / "figures.json").read_bytes())
    assert said["command"] == "./dev bench stops --stops 3 --broker redis"
    assert set(said["versions"]) == {"python", "longrun", "postgres", "valkey"}
    assert [row["group"] for row in said["rows"]][::4] == [
        "before pick-up (1)",
        "in mid-text (1)",
        "in silence (1)",
        "all (3)",
    ]
    assert all(row["longrun"] > 0 and row["limit"] > 0 for row in said["rows"] if row["name"].startswith("last event"))
    assert [series["name"] for series in said["plots"][0]["series"]] == [
        "limit",
        "before pick-up",
        "in mid-text",
        "in silence",
    ]
    assert (tmp_path / "plot.svg").read_text().rstrip().endswith("</svg>")


@pytest.mark.slow
async def test_lists_are_measured_on_a_filled_database(bench: Bench, tmp_path: Path) -> None:
    sizes = ("--accounts", "50", "--runs", "20000", "--messages", "60000", "--rounds", "1", "--requests", "2")
    process = bench("queries", *sizes, "--broker", "redis", "--json", "figures.json", "--svg", "plot.svg")
    output, _ = await asyncio.to_thread(process.communicate, timeout=WITHIN_SECONDS)
    assert process.returncode == 0, output
    rows = orjson.loads((tmp_path / "figures.json").read_bytes())["rows"]
    figures = {(row["group"], row["name"]): row for row in rows}
    assert figures["plans", "plans that read a big table whole"]["longrun"] == 0, output
    assert figures["a thread with project, messages and runs", "statements"]["longrun"] == 1
    assert figures["a thread with project, messages and runs", "100 at once on the pool, errors"]["longrun"] == 0
    assert figures["100 requests at once", "errors"]["longrun"] == 0
    assert all(row["limit"] > 0 for row in rows if row["group"].startswith("GET "))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("stream", "--readers", "4", "--seconds", "1", "--rounds", "1"),
        ("idle", "--streams", "20", "--seconds", "2", "--rounds", "1", "--ordinary", "4", "--reference", "4"),
    ],
    ids=["stream", "idle"],
)
async def test_streams_are_measured_beside_their_limit_and_the_reference(
    bench: Bench, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    process = bench(*arguments, "--broker", "redis", "--json", "figures.json", "--svg", "plot.svg")
    output, _ = await asyncio.to_thread(process.communicate, timeout=WITHIN_SECONDS)
    assert process.returncode == 0, output
    rows = orjson.loads((tmp_path / "figures.json").read_bytes())["rows"]
    assert len({row["group"] for row in rows}) == 2
    costs = [row for row in rows if row["name"] == "server's CPU per delivered event"]
    assert all(row["limit"] > 0 and row["longrun"] > 0 and row["reference"] > 0 for row in costs)
    assert all(row["longrun"] == 0 for row in rows if row["name"] == "gaps")
    assert all(0 < row["longrun"] <= 8 for row in rows if row["name"] == "server's connections to Redis")


@pytest.mark.slow
async def test_the_model_of_a_fleet_is_held_against_a_small_system(bench: Bench, tmp_path: Path) -> None:
    process = bench("simulate", "--small-runs", "40", "--runs", "100", "--readers", "1000", "--json", "figures.json")
    output, _ = await asyncio.to_thread(process.communicate, timeout=WITHIN_SECONDS)
    assert process.returncode == 0, output
    rows = {(row["group"], row["name"]): row for row in orjson.loads((tmp_path / "figures.json").read_bytes())["rows"]}
    assert rows["a small system, measured and simulated", "the model holds (1: yes)"]["longrun"] == 1, output
    assert rows["a host dies, back after 5 min", "without a driver, longest"]["longrun"] < 20
    assert rows["deploy, one process at a time", "without a driver, longest"]["longrun"] < 2


@pytest.mark.slow
def test_the_document_shows_what_is_simulated() -> None:
    """`python -m tests.benchmarks.simulate` writes it anew."""
    document = sizing.DOCUMENT.read_text()
    for marks, table in zip((simulate.WORKERS_HERE, simulate.READERS_HERE), simulate.in_a_document(), strict=True):
        assert document.partition(marks[0])[2].partition(marks[1])[0].strip() == table.strip()


async def test_asked_to_stop_it_leaves_nothing_behind(bench: Bench) -> None:
    process = bench("stops", "--stops", "10000", "--broker", "redis")
    await line_starting(process, "  limit: ", WITHIN_SECONDS)
    everything = descendants(process.pid)
    assert len(everything) > 4
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait, 30) == 128 + signal.SIGTERM
    assert not set(everything) & set(process_table())

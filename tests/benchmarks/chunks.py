"""What a worker spends on a streamed answer, beside a bare loop over the same stream; and what a live run weighs."""

import asyncio
import sys
import time
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from agent.catalog import PROVIDERS
from agent.llm.openai_dialect import open_stream
from agent.llm.request import ModelRequest
from services.embedded.environment import CHECKOUT, for_our_code
from services.settings import BrokerSettings, ModelSettings, PostgresSettings, RedisSettings, Settings
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.report import Plot, Report, Row, Series
from tests.benchmarks.session import Session
from tests.services.runs.seeds import make_run, row_of
from tests.worker.conftest import open_process
from worker import runner
from worker.process import Process

CHUNKS = 10_000
START_SECONDS = 0.02
MANY, SLOW = "openai/script-many", "openai/script-slow"
NOTES = (
    "limit: a bare loop over the stream of the openai SDK in the same process, nothing done with a chunk",
    "memory: resident memory of the process with so many live runs, less that before them, by run",
)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=counted(1), metavar="N", default=5, help="answers of 10,000 chunks (5)")
    parser.add_argument("--runs", type=counted(1), metavar="N", default=100, help="live runs to weigh (100)")


async def run(session: Session) -> Report:
    async with scripted_model() as url, open_process(settings_for(await session.stores(), url)) as process:
        limit, longrun = [], []
        with session.progress.steps("answers", session.options.rounds) as told:
            for _ in range(session.options.rounds):
                limit.append(await cpu_of_a_bare_loop(process))
                longrun.append(await cpu_of_a_run(process))
                told()
        weight = await weight_of_live_runs(process, session.options.runs)
    rows = [
        Row("CPU per chunk, median", "µs", median(longrun), median(limit), group=f"{CHUNKS} chunks"),
        Row("memory per live run", "KiB", weight / 1024, group=f"{session.options.runs} live runs"),
    ]
    rounds = [float(number + 1) for number in range(len(limit))]
    plot = Plot("CPU per chunk", "round", "µs", [Series("limit", rounds, limit), Series("Longrun", rounds, longrun)])
    return Report(f"answers of {CHUNKS} chunks", rows, [plot], NOTES)


@asynccontextmanager
async def scripted_model() -> AsyncIterator[str]:
    """Its base URL; a process of its own, whose CPU is not ours."""
    command = (sys.executable, "-m", "tests.fakes")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=CHECKOUT, env=for_our_code({})
    )
    assert process.stdout
    try:
        line = await process.stdout.readline()
        yield line.decode().strip().removeprefix("OPENAI_BASE_URL=")
    finally:
        process.kill()
        await process.wait()


def settings_for(addresses: Mapping[str, str], model_url: str) -> Settings:
    return Settings(
        postgres=PostgresSettings.model_validate({"url": addresses["DATABASE_URL"]}),
        redis=RedisSettings.model_validate({"url": addresses["REDIS_URL"]}),
        broker=BrokerSettings.model_validate({"kind": "redis", "redis_url": addresses["BROKER_REDIS_URL"]}),
        models=ModelSettings.model_validate({"openai_api_key": "sk-of-a-benchmark", "openai_base_url": model_url}),
    )


async def cpu_of_a_bare_loop(process: Process) -> float:
    """Microseconds of CPU per chunk."""
    request, count, began = ModelRequest(MANY, [{"role": "user", "content": "Go."}]), 0, time.process_time()
    async with await open_stream(process.settings, process.http, PROVIDERS["openai"], request) as stream:
        async for _ in stream:
            count += 1
    assert count >= CHUNKS
    return (time.process_time() - began) / count * 1e6


async def cpu_of_a_run(process: Process) -> float:
    """Microseconds of CPU per chunk, from the lock to the archived end."""
    made = await make_run(process.stores.pool, model=MANY)
    began = time.process_time()
    await runner.drive(process, made.id)
    spent = (time.process_time() - began) / CHUNKS * 1e6
    row = await row_of(process.stores.pool, made.id)
    assert row.status == "completed", row.error
    return spent


async def weight_of_live_runs(process: Process, count: int) -> float:
    """Bytes per run while all of them stream."""
    made = [await make_run(process.stores.pool, model=SLOW) for _ in range(count)]
    before = resident()
    driving = []
    for one in made:
        driving.append(asyncio.create_task(runner.drive(process, one.id)))
        await asyncio.sleep(START_SECONDS)
    heaviest = before
    while not all(task.done() for task in driving):
        heaviest = max(heaviest, resident())
        await asyncio.sleep(0.1)
    await asyncio.gather(*driving)
    return (heaviest - before) / count


def resident() -> int:
    """Bytes of resident memory (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


BENCHMARK = Benchmark(
    "chunks", "a worker's CPU for each streamed chunk, and the memory of a live run", add_options, run
)

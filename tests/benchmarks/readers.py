"""Runs with several readers each, who join at random, drop and resume; every log is compared, event by event."""

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields

from tests.acceptance.readers import Outcome, Plan, watch_all
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.report import Plot, Report, Row, shares
from tests.benchmarks.session import Session
from tests.figures import percentile

WORKERS = 2


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", type=counted(1), metavar="N", default=200, help="runs in all (200)")
    parser.add_argument("--at-once", type=counted(1, 1000), metavar="N", default=40, help="runs at a time (40)")
    parser.add_argument("--readers", type=counted(1, 1000), metavar="N", default=3, help="readers of each run (3)")
    parser.add_argument(
        "--chunks", type=counted(2, 100_000), metavar="N", default=200, help="chunks of text of each run (200)"
    )
    parser.add_argument(
        "--delay-ms", type=counted(0, 60_000), metavar="N", default=5, help="milliseconds between chunks (5)"
    )
    parser.add_argument(
        "--drops", type=counted(0), metavar="N", default=3, help="dropped connections of a reader, at most (3)"
    )


async def run(session: Session) -> Report:
    plan = Plan(**{field.name: getattr(session.options, field.name) for field in fields(Plan)})
    # A slot for each run that is there at once; one thread of a process stays free.
    async with session.instance(workers=WORKERS, threads=-(-plan.at_once // WORKERS) + 1) as instance:
        began = time.monotonic()
        with session.progress.steps("runs", plan.runs) as told:
            outcomes = await watch_all(instance.client, plan, told)
        return report(plan, outcomes, time.monotonic() - began)


def report(plan: Plan, outcomes: Sequence[Outcome], seconds: float) -> Report:
    took = [outcome.seconds for outcome in outcomes]
    title = f"{plan.runs} runs of {plan.chunks} chunks, {plan.readers} readers each, {plan.at_once} runs at a time"
    seen = Plot("Runs by when their last reader had all of it", "seconds from POST", "runs (%)", [shares("runs", took)])
    notes = ["Readers join late, drop and resume on purpose: seconds with readers include their absence."]
    return Report(title, rows(outcomes, took, seconds), [seen], notes)


def rows(outcomes: Sequence[Outcome], took: Sequence[float], seconds: float) -> list[Row]:
    readings = [reading for outcome in outcomes for reading in outcome.readings]
    delivered = sum(len(reading.events) for reading in readings)
    return [
        Row("runs", "runs/s", len(outcomes) / seconds),
        Row("events written", "events/s", sum(len(outcome.readings[0].events) for outcome in outcomes) / seconds),
        Row("events delivered", "events/s", delivered / seconds),
        Row("events delivered", "events", delivered),
        Row("readers", "", len(readings)),
        Row("resumes", "", sum(reading.connections - 1 for reading in readings)),
        Row("streams cut by the server", "", sum(reading.cut_by_server for reading in readings)),
        Row("run with its readers, p50", "s", percentile(took, 0.5)),
        Row("run with its readers, p95", "s", percentile(took, 0.95)),
        Row("run with its readers, longest", "s", max(took)),
    ]


BENCHMARK = Benchmark(
    "readers", "runs with readers who join late, drop and resume; all must see the same", add_options, run
)

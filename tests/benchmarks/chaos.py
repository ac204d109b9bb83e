"""Runs that go on while servers, workers and APIs are killed, paused, filled and emptied at random."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence

from services.embedded.console import EmbeddedError
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.command_line import counted
from tests.benchmarks.report import Plot, Report, Row, Series
from tests.benchmarks.session import Session
from tests.faults.catalogue import FAULTS
from tests.faults.chaos import Plan, Storm, rage
from tests.faults.lab import REAL, open_lab
from tests.figures import percentile


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", type=counted(1), metavar="N", default=200, help="runs in all (200)")
    parser.add_argument("--readers", type=counted(1, 100), metavar="N", default=3, help="readers of each run (3)")
    parser.add_argument("--workers", type=counted(2, 16), metavar="N", default=4, help="worker processes (4)")
    parser.add_argument("--faults", type=counted(1), metavar="N", default=40, help="faults in all (40)")
    parser.add_argument("--run-seconds", type=counted(1), metavar="N", default=90, help="how long a run takes (90)")
    parser.add_argument("--gap", type=counted(0), metavar="N", default=3, help="seconds from a recovery on (3)")
    parser.add_argument("--pairs", action="store_true", help="two faults at a time, overlapping")
    parser.add_argument(
        "--fault", type=known, action="append", metavar="NAME", help="draw only among the faults that are named"
    )


def known(name: str) -> str:
    if name not in FAULTS:
        raise ArgumentTypeError(f"{name!r} is none of: {', '.join(FAULTS)}")
    return name


async def run(session: Session) -> Report:
    """Raises: EmbeddedError when a running instance is named: what is broken here is private."""
    options = session.options
    if options.url:
        raise EmbeddedError("chaos kills servers, so it starts its own: leave out --url and --token")
    plan = Plan(
        options.runs,
        options.readers,
        options.faults,
        options.run_seconds,
        options.seed,
        options.pairs,
        options.gap,
        among=tuple(options.fault or FAULTS),
    )
    async with open_lab(session.state.folder / "lab", REAL, workers=options.workers, threads=64) as lab:
        session.versions |= lab.servers.versions()
        async with lab.signed_in():
            with session.progress.steps("faults", plan.faults) as advance:

                def say(line: str) -> None:
                    session.progress.say(line)
                    advance()

                storm = await rage(lab, plan, say)
    return report(plan, storm)


def report(plan: Plan, storm: Storm) -> Report:
    title = f"{plan.runs} runs with {plan.readers} readers each under {plan.faults} faults, seed {plan.seed}"
    recovered = [blow.recovery.seconds for blow in storm.blows]
    plot = Plot(
        "Recovery after each fault",
        "seconds from the beginning",
        "seconds until all was well",
        [Series("faults", [blow.at for blow in storm.blows], recovered)],
    )
    notes = [
        str(storm.tally),
        *(f"{blow.at:.0f} s: {blow.name}: {blow.recovery.seconds:.1f} s" for blow in storm.blows),
    ]
    return Report(title, rows(storm, recovered), [plot], notes)


def rows(storm: Storm, recovered: Sequence[float]) -> list[Row]:
    tally = storm.tally
    assert tally
    found = [
        Row("runs completed", "", tally.runs - tally.given_up),
        *([Row("runs given up after too many crashes", "", tally.given_up)] if tally.given_up else []),
        Row("readers that saw the same", "", tally.readers),
        Row("events", "", tally.events),
        Row("reconnects", "", tally.resumes),
        Row("void ids", "", tally.void),
        Row("attempts of a run, at most", "", tally.attempts),
        Row("silence of a reader, at most", "s", tally.silence),
        Row("faults", "", len(recovered)),
        Row("recovery, p50", "s", percentile(recovered, 0.5)),
        Row("recovery, longest", "s", max(recovered)),
        Row("in all", "s", storm.seconds),
    ]
    taken_over = storm.taken_over
    if taken_over:
        found += [
            Row("runs taken over", "", len(taken_over)),
            Row("taken over after, p50", "s", percentile(taken_over, 0.5)),
            Row("taken over after, longest", "s", max(taken_over)),
        ]
    return found


BENCHMARK = Benchmark("chaos", "faults at random under a load that goes on; nothing may be lost", add_options, run)

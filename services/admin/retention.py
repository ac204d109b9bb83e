"""`retention show | run`: what is deleted by age, and deleting it now instead of a little at a time."""

import argparse
import asyncio
import os
import socket
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime

from services import retention
from services.admin.arguments import add_json, duration
from services.admin.opened import on_pool
from services.admin.output import Output, ago, lasting
from services.errors import Unavailable, Unprocessable
from services.postgres import Pool
from services.retention import NotOurTurn, Rule, Turn
from services.settings import RetentionSettings, Settings

NAMES = ("events", "messages", "runs")
BUSY_TRIES, BUSY_SECONDS = 90, 1.0
COUNT_SECONDS, BAR_SECONDS = 3600.0, 10.0
BUSY = "A worker's sweep is under way and does not end: `retention show` says whose."
OFF = "Nothing is deleted by age: RETENTION_EVENTS, RETENTION_MESSAGES and RETENTION_RUNS are 0."
CHOOSE = f"{OFF} --events, --messages and --runs choose ages for once."


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("retention", help="what is deleted by age", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    showing = commands.add_parser("show", help="the settings, how much is older, and the last sweep")
    running = commands.add_parser("run", help="delete all that is older, beside everything else")
    for name in NAMES:
        running.add_argument(
            f"--{name}", type=duration, metavar="AGE", help=f"instead of RETENTION_{name.upper()}; 0: leave them"
        )
    running.add_argument("--dry-run", action="store_true", help="only count")
    showing.set_defaults(run=show)
    running.set_defaults(run=run)
    add_json(showing, running)


def ages(settings: Settings, options: argparse.Namespace) -> RetentionSettings:
    """Raises: ValidationError; Unprocessable when nothing is to be deleted."""
    given = {name: age for name in NAMES if (age := getattr(options, name)) is not None}
    chosen = RetentionSettings.model_validate({**settings.retention.model_dump(), **given})
    if not chosen.anything:
        raise Unprocessable(CHOOSE)
    return chosen


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    rules = retention.rules(settings.retention)

    async def act(pool: Pool) -> tuple[dict[str, int], Turn | None]:
        return await retention.count(pool, rules, COUNT_SECONDS), await retention.last_turn(pool)

    older, turn = on_pool(settings, act)
    if options.json:
        kept = {name: getattr(settings.retention, name).total_seconds() for name in NAMES}
        output.document({"kept_seconds": kept, "older": older, "last": asdict(turn) if turn else None})
        return 0
    rows = [(rule.name, lasting(rule.age), str(older[rule.name])) for rule in rules]
    output.table("Deleted by age", ("what", "kept for", "older now"), rows) if rows else output.say(OFF)
    if turn:
        output.say(last(turn))
    return 0


def last(turn: Turn) -> str:
    removed = ", ".join(f"{count} {name}" for name, count in turn.removed.items() if count) or "nothing"
    ended = f"ended {ago(turn.ended_at, datetime.now(UTC))}" if turn.ended_at else "was cut off"
    when = "is under way" if turn.taken else ended
    return f"The last sweep ({turn.owner}) {when} and removed {removed}."


def run(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    chosen = ages(settings, options)
    rules = retention.rules(chosen)

    async def act(pool: Pool) -> dict[str, int]:
        if options.dry_run:
            return await retention.count(pool, rules, COUNT_SECONDS)
        return await remove(pool, chosen, output)

    done = on_pool(settings, act)
    what = "would be removed" if options.dry_run else "removed"
    if options.json:
        output.document({"removed": done, "dry_run": options.dry_run})
    else:
        rows = [(rule.name, lasting(rule.age), str(done.get(rule.name, 0))) for rule in rules]
        output.table("Deleted by age", ("what", "older than", what), rows)
    return 0


async def total(pool: Pool, rules: list[Rule]) -> int | None:
    """For a bar: what takes long to count is removed all the same."""
    try:
        return sum((await retention.count(pool, rules, BAR_SECONDS)).values())
    except TimeoutError:
        return None


async def remove(pool: Pool, chosen: RetentionSettings, output: Output) -> dict[str, int]:
    owner = f"admin on {socket.gethostname()}, process {os.getpid()}"
    rules = retention.rules(chosen)
    removed = {rule.name: 0 for rule in rules}
    with output.progress("removing", await total(pool, rules)) as told:
        for _ in range(BUSY_TRIES):
            try:
                async with aclosing(retention.sweep(pool, chosen, owner)) as batches:
                    async for batch in batches:
                        removed[batch.rule] += batch.count
                        told(batch.count)
            except NotOurTurn:
                await asyncio.sleep(BUSY_SECONDS)
            else:
                return removed
    raise Unavailable(BUSY)

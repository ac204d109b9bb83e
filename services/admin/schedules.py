"""`schedules list | show | pause | resume`: what fires when, and what came of it."""

import argparse
from dataclasses import asdict
from datetime import UTC, datetime
from uuid import UUID

from services.admin.arguments import add_json, duration, identifier, positive
from services.admin.opened import on_pool
from services.admin.output import Output, ago, without_secrets
from services.errors import NotFound
from services.postgres import Executor, Pool, transaction
from services.schedules import firings, overview, store
from services.schedules.firings import Firing
from services.schedules.store import Schedule
from services.settings import Settings

LISTED = 20
ABOUT_CHARS = 60


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("schedules", help="what fires when", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="those that fire next first")
    listing.add_argument("--account", type=identifier, metavar="ID")
    listing.add_argument("--status", choices=("active", "paused", "completed"))
    listing.add_argument("--late", type=duration, metavar="AGE", help="only those that were due so long ago: 1m, 1h")
    listing.add_argument("--limit", type=positive, default=LISTED, help=f"at most so many ({LISTED})")
    listing.set_defaults(run=list_schedules)
    showing = commands.add_parser("show", help="one, and what came of its last fire times")
    showing.add_argument("--limit", type=positive, default=LISTED, help=f"at most so many fire times ({LISTED})")
    showing.set_defaults(run=show)
    pausing = commands.add_parser("pause", help="have one fire no more until it is resumed")
    pausing.set_defaults(run=change, enabled=False)
    resuming = commands.add_parser("resume", help="have one fire again; what it missed is not made up for")
    resuming.set_defaults(run=change, enabled=True)
    for command in (showing, pausing, resuming):
        command.add_argument("schedule", metavar="SCHEDULE", type=identifier)
    add_json(listing, showing, pausing, resuming)


def list_schedules(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(pool: Pool) -> list[Schedule]:
        return await overview.list_schedules(
            pool, account_id=options.account, status=options.status, late=options.late, limit=options.limit
        )

    tell(options, output, on_pool(settings, act))
    return 0


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(pool: Pool) -> tuple[Schedule, list[Firing]]:
        schedule = await found(pool, options.schedule)
        return schedule, await firings.page(pool, schedule.schedule_id, before=None, limit=options.limit)

    schedule, came = on_pool(settings, act)
    if options.json:
        output.document({"schedule": described(schedule), "firings": [asdict(one) for one in came]})
        return 0
    tell(options, output, [schedule])
    rows = [
        (
            f"{one.fire_time:%Y-%m-%d %H:%M:%S}",
            one.status,
            str(one.agent_run_id or "-"),
            one.run_status or "-",
            str(without_secrets(one.error or "")),
        )
        for one in came
    ]
    columns = ("time", "came to", "run", "run is", "error")
    output.table("Its last fire times" if rows else "It never fired", columns, rows)
    return 0


def change(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(pool: Pool) -> Schedule:
        async with transaction(pool) as conn:
            known = await found(conn, options.schedule)
            locked = await store.lock(conn, known.account_id, known.schedule_id)
            return await store.set_enabled(conn, locked, options.enabled)

    tell(options, output, [on_pool(settings, act)])
    return 0


async def found(conn: Executor, schedule_id: UUID) -> Schedule:
    schedule = await store.find(conn, schedule_id)
    if schedule is None:
        raise NotFound(f"There is no schedule {schedule_id}.")
    return schedule


def described(schedule: Schedule) -> dict[str, object]:
    shown: dict[str, object] = without_secrets(asdict(schedule))
    return shown


def tell(options: argparse.Namespace, output: Output, schedules: list[Schedule]) -> None:
    if options.json:
        output.document({"schedules": [described(schedule) for schedule in schedules]})
        return
    now = datetime.now(UTC)
    rows = [
        (
            str(one.schedule_id),
            one.name[:ABOUT_CHARS],
            one.status,
            f"{one.next_fire_at:%Y-%m-%d %H:%M:%S}" if one.next_fire_at else "-",
            ago(one.last_fired_at, now) if one.last_fired_at else "never",
            f"{one.execution_count}, {one.error_count} failed",
            f"workflow {one.workflow_id}" if one.workflow_id else f"thread {one.thread_id}",
            str(one.account_id),
        )
        for one in schedules
    ]
    columns = ("schedule", "name", "status", "next (UTC)", "fired", "times", "starts", "account")
    output.table("Schedules" if rows else "No schedules", columns, rows)

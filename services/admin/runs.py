"""`runs list | show | stop | requeue`: what lives and what ended, why, and what to do about it."""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from services.admin.arguments import add_json, duration, identifier, positive
from services.admin.opened import on_pool, on_stores
from services.admin.output import Output, ago, lasting, without_secrets
from services.admin.run_report import Report, look
from services.errors import NotFound
from services.postgres import Pool
from services.runs import lifecycle, overview, stopping, store
from services.runs.events import FINAL_STATUSES
from services.runs.overview import SeenRun, Wanted
from services.runs.store import Run
from services.runs.stores import Stores
from services.settings import Settings

LISTED = 20
AT_ONCE = 500
SILENT = timedelta(minutes=10)
END_LOOKS = 100
LOOK_SECONDS = 0.1
ABOUT_CHARS = 200


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("runs", help="runs of agents and workflows", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="those that live, newest first, and those that ended last")
    add_filters(listing)
    listing.add_argument("--limit", type=positive, default=LISTED, help=f"at most so many ({LISTED})")
    listing.set_defaults(run=list_runs)

    showing = commands.add_parser("show", help="everything about one: who drives it, what it said last, why it failed")
    showing.add_argument("run_id", metavar="RUN", type=identifier)
    showing.add_argument("--events", type=positive, default=10, help="so many of its last events (10)")
    showing.set_defaults(run=show)

    stop = commands.add_parser("stop", help="end them as stopped, whoever drives them")
    requeue = commands.add_parser("requeue", help="have another worker go on with them; nothing that is stored is lost")
    for command, act in ((stop, stop_runs), (requeue, requeue_runs)):
        command.add_argument("ids", nargs="*", metavar="RUN", type=identifier)
        add_filters(command)
        command.add_argument("--dry-run", action="store_true", help="only say which")
        command.set_defaults(run=act, usage=command)
    add_json(listing, showing, stop, requeue)


def add_filters(command: argparse.ArgumentParser) -> None:
    command.add_argument("--status", choices=("live", "queued", "running", *FINAL_STATUSES))
    command.add_argument("--account", type=identifier, metavar="ID")
    command.add_argument("--project", type=identifier, metavar="ID")
    command.add_argument("--thread", type=identifier, metavar="ID")
    command.add_argument("--instance", metavar="ID", help="only those that this worker process drives or drove")
    command.add_argument("--stuck", action="store_true", help="only live ones that make no headway")
    command.add_argument(
        "--silent-for", type=duration, default=SILENT, metavar="AGE", help="what --stuck takes for no headway (10m)"
    )


def wanted(settings: Settings, options: argparse.Namespace) -> Wanted:
    stuck = (settings.runs.dead_after, options.silent_for) if options.stuck else None
    return Wanted(options.status, options.account, options.project, options.thread, options.instance, stuck)


def list_runs(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    found = on_pool(settings, lambda pool: overview.list_runs(pool, wanted(settings, options), options.limit))
    if options.json:
        output.document({"runs": [asdict(run) for run in found]})
    else:
        show_table(output, "Stuck runs" if options.stuck else "Runs", found)
    return 0


def show_table(output: Output, title: str, found: Sequence[SeenRun]) -> None:
    now = datetime.now(UTC)
    rows = [
        (
            str(run.id),
            run.phase,
            ago(run.completed_at or run.started_at or run.created_at, now),
            ago(run.spoke_at, now) if run.spoke_at else "-",
            str(run.attempt),
            driver_of(run),
            str(without_secrets(run.error or run.model_name))[:ABOUT_CHARS],
        )
        for run in found
    ]
    columns = ("run", "phase", "since", "last event", "attempt", "driver", "error or model")
    output.table(title if rows else f"{title}: none", columns, rows)


def driver_of(run: SeenRun) -> str:
    if run.status != "running":
        return "-"
    age = lasting(run.heartbeat_age) if run.heartbeat_age is not None else "?"
    return f"{run.instance_id}, heard {age} ago"


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    report = on_stores(settings, lambda stores: look(stores, options.run_id, options.events))
    if options.json:
        output.document(report.document)
        return 0
    tell(output, report)
    return 0


def tell(output: Output, report: Report) -> None:
    output.table(f"Run {report.run.id}", ("", ""), report.facts)
    rows = [(str(event.id), event.type, event.about) for event in report.events]
    output.table("Its last events" if rows else "It has said nothing yet", ("id", "type", ""), rows)
    if report.run.error:
        output.say(f"It failed: {without_secrets(report.run.error)}")
    for sentence in report.advice:
        output.say(f"→ {sentence}")


def stop_runs(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    check_choice(options)

    async def act(stores: Stores) -> list[Run]:
        chosen = await choose(stores.pool, settings, options)
        if not options.dry_run:
            with output.progress("stopping", len(chosen)) as told:
                for first in range(0, len(chosen), AT_ONCE):
                    some = chosen[first : first + AT_ONCE]
                    await stopping.request_stops(stores, some)
                    await see_them_end(stores, some)
                    told(len(some))
        return await rows_of(stores.pool, chosen)

    return answer(options, output, "would be stopped" if options.dry_run else "stopped", on_stores(settings, act))


async def see_them_end(stores: Stores, run_ids: Sequence[UUID]) -> None:
    """Until all are final and have said their last words, for a while; sweepers finish what is left."""
    query = "SELECT count(*) FROM agent_runs WHERE id = ANY($1) AND closed_at IS NULL"
    for _ in range(END_LOOKS):
        if not await stores.pool.fetchval(query, run_ids):
            return
        await asyncio.sleep(LOOK_SECONDS)


def requeue_runs(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    """Those that wait are called for again, those that run are taken from their driver; ended ones are left alone."""
    check_choice(options)

    async def act(stores: Stores) -> list[Run]:
        chosen = await choose(stores.pool, settings, options)
        rows = await rows_of(stores.pool, chosen)
        if options.dry_run:
            return rows
        running = [(run.id, run.attempt) for run in rows if run.status == "running"]
        back = await lifecycle.take_back(stores.pool, running)
        for run in [*(run for run in rows if run.status == "queued"), *back]:
            stores.dispatch.send_run(run)
        return await rows_of(stores.pool, chosen)

    return answer(options, output, "would be requeued" if options.dry_run else "requeued", on_stores(settings, act))


def check_choice(options: argparse.Namespace) -> None:
    """Exits with status 2 when nothing was chosen, or ids beside filters."""
    filters = ("status", "account", "project", "thread", "instance", "stuck")
    filtered = any(getattr(options, name) for name in filters)
    if bool(options.ids) == filtered:
        options.usage.error("name the runs, or choose them with --status, --account, --instance, --stuck, …")
    if options.status in FINAL_STATUSES:
        options.usage.error("argument --status: runs that have ended cannot be stopped or requeued")


async def choose(pool: Pool, settings: Settings, options: argparse.Namespace) -> list[UUID]:
    """Raises: NotFound for a run that is named and not there."""
    if options.ids:
        known = await overview.phases(pool, options.ids)
        missing = [str(run_id) for run_id in options.ids if run_id not in known]
        if missing:
            raise NotFound(f"There is no run {', '.join(missing)}.")
        return list(dict.fromkeys(options.ids))
    options.status = options.status or "live"
    return [run.id for run in await overview.list_runs(pool, wanted(settings, options), 1_000_000)]


async def rows_of(pool: Pool, run_ids: Sequence[UUID]) -> list[Run]:
    rows = await pool.fetch(f"SELECT {store.COLUMNS} FROM agent_runs AS run WHERE id = ANY($1)", run_ids)
    found = {row["id"]: Run(**row) for row in rows}
    return [found[run_id] for run_id in run_ids if run_id in found]


def answer(options: argparse.Namespace, output: Output, what: str, runs: Sequence[Run]) -> int:
    """How each is now; 1 when one is not as was asked for."""
    right = {"stopped": ("stopped",), "requeued": ("queued", "running", "waiting")}.get(what)
    left = [run for run in runs if right and run.phase not in right]
    if options.json:
        shown: list[dict[str, Any]] = [{"id": run.id, "phase": run.phase, "error": run.error} for run in runs]
        output.document({what.replace(" ", "_"): shown, "dry_run": options.dry_run})
    else:
        rows = [(str(run.id), run.phase, without_secrets(run.error or "")) for run in runs]
        output.table(f"{len(runs) - len(left)} {what}", ("run", "phase", "error"), rows)
    for run in left:
        output.fail(refusal(run, what))
    return 1 if left else 0


def refusal(run: Run, what: str) -> str:
    if run.final and what == "requeued":
        return f"run {run.id} has ended ({run.phase}); POST /api/agent-run/{run.id}/retry makes a new one of it"
    if run.final:
        return f"run {run.id} had ended before ({run.phase})"
    return f"run {run.id} is still {run.phase}: a sweeper goes on with it; look again in a minute"

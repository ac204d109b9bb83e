"""`workers list | show | drain`: worker processes, what each drives, and how one is asked to leave."""

import argparse
import asyncio
from collections import defaultdict
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from services import workers
from services.admin.arguments import add_json, duration
from services.admin.opened import on_stores
from services.admin.output import Output, ago
from services.admin.runs import show_table
from services.errors import NotFound, Unavailable
from services.redis import Unreachable
from services.runs import overview
from services.runs.overview import SeenRun
from services.runs.stores import Stores
from services.settings import Settings
from services.workers import Worker

LOOK_SECONDS = 0.2
WAIT = timedelta(minutes=15)


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("workers", help="worker processes and what they drive", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="all that announced themselves, and all that drive a run")
    listing.set_defaults(run=list_workers)
    showing = commands.add_parser("show", help="the runs of one process")
    showing.add_argument("instance", metavar="INSTANCE")
    showing.set_defaults(run=show)
    draining = commands.add_parser(
        "drain",
        help="have a process and those of its group leave, as a SIGTERM does",
        description="They take nothing more; live runs go on as RUN_DRAIN says; then the processes exit with status 0,"
        " and whatever supervises them may start them again.",
    )
    draining.add_argument("instance", metavar="INSTANCE", help="any process of the group")
    draining.add_argument("--no-wait", action="store_true", help="do not wait until they have left")
    draining.add_argument("--wait", type=duration, default=WAIT, metavar="AGE", help="how long to wait (15m)")
    draining.set_defaults(run=drain)
    add_json(listing, showing, draining)


def list_workers(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    """Status 1 when Redis is away: then only those are known that drive a run."""

    async def act(stores: Stores) -> tuple[list[Worker] | None, dict[str, list[SeenRun]]]:
        try:
            known = await workers.known(stores.shards.home.redis)
        except Unreachable:
            known = None
        return known, by_instance(await overview.driven(stores.pool))

    known, driven = on_stores(settings, act)
    silent = sorted(driven.keys() - {worker.instance_id for worker in known or ()})
    if options.json:
        shown = [{**asdict(one), "runs": [run.id for run in driven.get(one.instance_id, ())]} for one in known or ()]
        left = {name: [run.id for run in driven[name]] for name in silent}
        output.document({"workers": shown, "not_announced": left})
    else:
        tell(output, known or [], silent, driven)
    if known is None:
        output.fail("Redis does not answer: only processes that drive a run are known")
    return 1 if known is None else 0


def by_instance(runs: list[SeenRun]) -> dict[str, list[SeenRun]]:
    found: dict[str, list[SeenRun]] = defaultdict(list)
    for run in runs:
        found[run.instance_id or "?"].append(run)
    return found


def tell(output: Output, known: list[Worker], silent: list[str], driven: dict[str, list[SeenRun]]) -> None:
    now = datetime.now(UTC)
    rows = [
        (
            one.instance_id,
            one.host,
            str(one.pid),
            str(one.group_pid),
            f"{len(driven.get(one.instance_id, ()))} of {one.slots}",
            ago(datetime.fromisoformat(one.started_at), now),
            "leaving" if one.leaving else "takes runs",
        )
        for one in known
    ]
    rows += [
        (name, "?", "?", "?", str(len(driven[name])), "?", "not announced: dead, or Redis is away") for name in silent
    ]
    output.table(
        "Workers" if rows else "No worker is alive",
        ("instance", "host", "process", "group", "runs", "started", "state"),
        rows,
    )


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(stores: Stores) -> tuple[Worker | None, list[SeenRun]]:
        known = {one.instance_id: one for one in await workers.known(stores.shards.home.redis)}
        return known.get(options.instance), by_instance(await overview.driven(stores.pool))[options.instance]

    worker, runs = on_stores(settings, act)
    if worker is None and not runs:
        raise NotFound(missing(options.instance))
    if options.json:
        output.document({"worker": asdict(worker) if worker else None, "runs": [asdict(run) for run in runs]})
        return 0
    if worker:
        tell(output, [worker], [], {worker.instance_id: runs})
    show_table(output, f"Runs of {options.instance}", runs)
    return 0


def missing(instance: str) -> str:
    return f"There is no worker process {instance}: `workers list` shows those that are alive."


def drain(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    """Status 1 when some are still there after the wait."""

    async def act(stores: Stores) -> tuple[list[Worker], bool]:
        group = await group_of(stores, options.instance)
        if not await workers.ask_to_drain(stores.shards.home.redis, [options.instance]):
            raise Unavailable(
                f"Process {options.instance} does not listen: it is hung, or loses its connection to Redis."
            )
        return group, options.no_wait or await left(stores, group, options.wait, output)

    group, gone = on_stores(settings, act)
    if options.json:
        output.document({"asked": [asdict(one) for one in group], "left": None if options.no_wait else gone})
    else:
        what = "is asked to leave" if options.no_wait else "has left" if gone else "is still leaving"
        output.say(f"Group {group[0].group_pid} on {group[0].host} ({len(group)} processes) {what}.")
    return 0 if gone else 1


async def group_of(stores: Stores, instance: str) -> list[Worker]:
    """A process and those that stop with it. Raises: NotFound."""
    known = await workers.known(stores.shards.home.redis)
    chosen = next((one for one in known if one.instance_id == instance), None)
    if chosen is None:
        raise NotFound(missing(instance))
    return [one for one in known if (one.host, one.group_pid) == (chosen.host, chosen.group_pid)]


async def left(stores: Stores, group: list[Worker], wait: timedelta, output: Output) -> bool:
    """Whether none of them is announced or drives a run any more."""
    ours = {one.instance_id for one in group}
    deadline = asyncio.get_running_loop().time() + wait.total_seconds()
    with output.progress("leaving", len(ours)) as told:
        gone = 0
        while True:
            there = await workers.announced(stores.shards.home.redis, list(ours))
            there |= ours & by_instance(await overview.driven(stores.pool)).keys()
            told(len(ours) - len(there) - gone)
            gone = len(ours) - len(there)
            if not there or asyncio.get_running_loop().time() > deadline:
                return not there
            await asyncio.sleep(LOOK_SECONDS)

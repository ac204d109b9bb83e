"""`queues`: what waits at the broker, what died there, and how the rows stand beside it."""

import argparse
from dataclasses import asdict
from datetime import UTC, datetime

from services import queues
from services.admin.arguments import add_json
from services.admin.opened import on_pool
from services.admin.output import Output, ago, lasting
from services.dead_letters import address
from services.errors import Unavailable
from services.runs import overview
from services.settings import Settings

UNKNOWN = "-"


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("queues", help="depth, consumers and dead letters of the queues", description=__doc__)
    add_json(group)
    group.set_defaults(run=show)


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    """Status 1 when the broker does not answer: the rows are told all the same."""
    rows = on_pool(settings, lambda pool: overview.counts(pool, settings.runs.dead_after))
    away = None
    found: list[queues.Queue] = []
    try:
        found = queues.look(settings)
    except Unavailable as error:
        away = str(error)
    if options.json:
        runs = {
            name: value.total_seconds() if name == "oldest_queued" and value else value for name, value in rows.items()
        }
        output.document({"broker": address(settings), "queues": [asdict(queue) for queue in found], "runs": runs})
    else:
        show_tables(settings, output, found, rows)
    if away:
        output.fail(away)
    return 1 if away else 0


def show_tables(settings: Settings, output: Output, found: list[queues.Queue], rows: dict[str, object]) -> None:
    now = datetime.now(UTC)
    if found:
        output.table(
            f"Queues at {address(settings)}",
            ("queue", "ready", "delayed", "with workers", "consumers", "dead letters", "oldest died"),
            [
                (
                    queue.name + (" (not declared yet)" if queue.missing else ""),
                    str(queue.ready),
                    str(queue.delayed),
                    UNKNOWN if queue.taken is None else str(queue.taken),
                    UNKNOWN if queue.consumers is None else str(queue.consumers),
                    str(queue.dead),
                    ago(queue.oldest_dead_at, now) if queue.oldest_dead_at else UNKNOWN,
                )
                for queue in found
            ],
        )
    shown = {name: lasting(value) if hasattr(value, "total_seconds") else value for name, value in rows.items()}  # type: ignore[arg-type]
    output.table(
        "Runs", tuple(MEANING.values()), [tuple(UNKNOWN if shown[n] is None else str(shown[n]) for n in MEANING)]
    )


MEANING = {
    "waiting": "wait (time, project, slot)",
    "queued": "could start",
    "oldest_queued": "the oldest since",
    "running": "running",
    "stopping": "stopping",
    "without_driver": "without a live driver",
    "unclosed": "ended, not closed",
}

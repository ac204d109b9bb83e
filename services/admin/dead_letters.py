"""`dead-letters list | show | replay | purge`."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from services.admin.arguments import duration, positive
from services.admin.output import Output, ago, without_secrets
from services.dead_letters import QUEUES, Box, DeadLetter, address, open_box
from services.settings import Settings

LISTED = 20
SCANNED = 10_000
TEXT_BYTES = 500
ABOUT_CHARS = 60


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("dead-letters", help="messages that no worker could use", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="what is there, oldest first")
    add_filters(listing)
    listing.add_argument("--limit", type=positive, default=LISTED, help=f"at most so many per queue ({LISTED})")
    listing.set_defaults(run=list_letters)

    showing = commands.add_parser("show", help="everything about some of them")
    showing.add_argument("ids", nargs="+", metavar="ID")
    showing.set_defaults(run=show)

    for name, act, verb in (("replay", replay, "send to their queue again"), ("purge", purge, "remove for good")):
        acting = commands.add_parser(name, help=f"{verb}: the ones that are named, or all that the options choose")
        acting.add_argument("ids", nargs="*", metavar="ID")
        acting.add_argument("--all", action="store_true", help="all of the queues")
        acting.add_argument("--dry-run", action="store_true", help="only say which")
        add_filters(acting)
        acting.set_defaults(run=act, usage=acting)

    for command in commands.choices.values():
        command.add_argument("--queue", action="append", help=f"repeatable; {' and '.join(QUEUES)} without it")
        command.add_argument("--scan", type=positive, default=SCANNED, help=f"look for IDs among so many ({SCANNED})")
        command.add_argument("--json", action="store_true", help="for scripts")


def add_filters(command: argparse.ArgumentParser) -> None:
    command.add_argument("--actor", help="only messages for this actor")
    command.add_argument("--older-than", type=duration, metavar="AGE", help="only those that died before: 90s, 15m, 2d")


@dataclass
class Chosen:
    """Which letters a command is about, and which of the named ones were met."""

    ids: set[str]
    actor: str | None
    died_before: datetime | None
    scan: int
    met: set[str] = field(default_factory=set)

    @classmethod
    def by(cls, options: argparse.Namespace) -> "Chosen":
        age = getattr(options, "older_than", None)
        return cls(
            set(getattr(options, "ids", ())),
            getattr(options, "actor", None),
            datetime.now(UTC) - age if age is not None else None,
            options.scan,
        )

    def of(self, box: Box) -> Iterator[DeadLetter]:
        """Those of a box; never more than it held at first, since what is sent again may die again."""
        held = box.count()
        looked_at = islice(box.letters(), min(held, self.scan) if self.ids else held)
        while not self.complete and (letter := next(looked_at, None)):
            if self.died_before and letter.died_at and letter.died_at >= self.died_before:
                return  # those that follow died later
            if self.wants(letter):
                self.met.update(self.ids and {letter.id})
                yield letter

    def wants(self, letter: DeadLetter) -> bool:
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.actor or letter.actor == self.actor)
            and not (self.died_before and letter.died_at is None)
        )

    @property
    def complete(self) -> bool:
        return bool(self.ids) and self.ids == self.met

    @property
    def missing(self) -> list[str]:
        return sorted(self.ids - self.met)

    @property
    def everything(self) -> bool:
        return not (self.ids or self.actor or self.died_before)


def list_letters(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    chosen, counts, found = Chosen.by(options), {}, []
    for queue in queues(options):
        with open_box(settings, queue) as box:
            counts[queue] = box.count()
            found += list(islice(chosen.of(box), options.limit))
    if options.json:
        output.document({"counts": counts, "dead_letters": [described(letter) for letter in found]})
        return 0
    total = ", ".join(f"{queue} {count}" for queue, count in counts.items())
    show_table(output, f"Dead letters at {address(settings)}: {total}", found)
    return 0


def show_table(output: Output, title: str, letters: list[DeadLetter]) -> None:
    now = datetime.now(UTC)
    rows = [
        (letter.id, letter.queue, letter.actor or "?", ago(letter.died_at, now), letter.reason or "?", about(letter))
        for letter in letters
    ]
    output.table(title, ("id", "queue", "actor", "died", "reason", "about"), rows)


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    chosen, found = Chosen.by(options), []
    for queue in queues(options):
        with open_box(settings, queue) as box:
            found += [described(letter) for letter in chosen.of(box)]
    if options.json:
        output.document({"dead_letters": found, "not_found": chosen.missing})
    else:
        for letter in found:
            output.document(letter)
    return told_missing(chosen, output)


def replay(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    chosen, sent, unreadable = choice(options), Tally(), Tally()
    for queue in queues(options):
        with open_box(settings, queue) as box:
            for letter in chosen.of(box):
                if letter.target is None:
                    unreadable.add(letter)
                    continue
                if not options.dry_run:
                    box.replay(letter)
                sent.add(letter)
    if options.json:
        output.document({**did("replayed", sent, chosen, options), "unreadable": unreadable.count})
    else:
        tell(output, "would be sent again" if options.dry_run else "sent again", sent)
        if unreadable.count:
            tell(output, "left alone: no worker could read them", unreadable)
    return told_missing(chosen, output) or bool(unreadable.count)


def purge(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    chosen, removed = choice(options), Tally()
    for queue in queues(options):
        with open_box(settings, queue) as box:
            if chosen.everything:
                removed.count += box.count() if options.dry_run else box.purge()
                continue
            for letter in chosen.of(box):
                if not options.dry_run:
                    box.remove(letter)
                removed.add(letter)
    if options.json:
        output.document(did("purged", removed, chosen, options))
    else:
        tell(output, "would be removed" if options.dry_run else "removed", removed)
    return told_missing(chosen, output)


@dataclass
class Tally:
    """How many letters, and the first of them."""

    count: int = 0
    first: list[DeadLetter] = field(default_factory=list)

    def add(self, letter: DeadLetter) -> None:
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(letter)


def choice(options: argparse.Namespace) -> Chosen:
    """What to act upon; exits with status 2 when nothing was chosen, or ids beside everything."""
    chosen = Chosen.by(options)
    if options.all == bool(options.ids) and (options.all or chosen.everything):
        options.usage.error("name the IDs, or choose with --all, --actor or --older-than")
    return chosen


def did(what: str, tally: Tally, chosen: Chosen, options: argparse.Namespace) -> dict[str, Any]:
    first = [letter.id for letter in tally.first]
    return {what: tally.count, "first": first, "not_found": chosen.missing, "dry_run": options.dry_run}


def tell(output: Output, what: str, tally: Tally) -> None:
    if tally.first:
        show_table(output, f"{tally.count} {what}" + (", among them" if tally.count > LISTED else ""), tally.first)
    else:
        output.say(f"{tally.count} {what}")


def told_missing(chosen: Chosen, output: Output) -> int:
    for missing in chosen.missing:
        output.fail(f"there is no dead letter {missing} among the oldest {chosen.scan} (--scan, --queue)")
    return 1 if chosen.missing else 0


def described(letter: DeadLetter) -> dict[str, Any]:
    """A letter for people and scripts, its secrets hidden."""
    content = without_secrets(letter.content) if letter.content else {}
    return {
        "id": letter.id,
        "queue": letter.queue,
        "actor": letter.actor,
        "reason": letter.reason,
        "sent_at": moment(content.get("message_timestamp")),
        "died_at": letter.died_at.isoformat() if letter.died_at else None,
        "args": content.get("args"),
        "kwargs": content.get("kwargs"),
        "options": content.get("options"),
        "bytes": len(letter.body),
        "unreadable": None if letter.content else excerpt(letter.body),
    }


def moment(milliseconds: Any) -> str | None:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def excerpt(body: bytes) -> str:
    return str(without_secrets(body[:TEXT_BYTES].decode(errors="backslashreplace")))


def about(letter: DeadLetter) -> str:
    """A few words that tell letters apart: the run it was to wake, else its first arguments or bytes."""
    if letter.content is None:
        return excerpt(letter.body)[:ABOUT_CHARS]
    content = without_secrets(letter.content)
    run_id = content["kwargs"].get("agent_run_id")
    arguments = [*map(str, content["args"]), *(f"{name}={value}" for name, value in content["kwargs"].items())]
    return f"run {run_id}" if run_id else ", ".join(arguments)[:ABOUT_CHARS]


def queues(options: argparse.Namespace) -> list[str]:
    return options.queue or list(QUEUES)

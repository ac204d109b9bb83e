"""What must be true of runs whatever happens to them: told after every step what the stores hold."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from services.runs import events
from tests.services.runs.seeds import kind

CHUNK = re.compile(r"<(\d+)\.(\d+)>")
FINAL = ("completed", "failed", "stopped")


def token(attempt: int, number: int) -> str:
    """A text that is said once in the life of a run: by which attempt, and its how-manieth it is."""
    return f"<{attempt}.{number}>"


def tokens(event: bytes) -> list[tuple[int, int]]:
    return [(int(attempt), int(number)) for attempt, number in CHUNK.findall(event.decode())]


@dataclass(frozen=True)
class Sight:
    """One run as the stores hold it."""

    row: dict[str, Any]
    listed: list[bytes]
    archived: list[bytes]
    lock: bytes | None
    remembered: bool
    """Whether a live process holds this log under the row's fence: it can give Redis back what was lost."""

    @property
    def final(self) -> bool:
        return self.row["completed_at"] is not None

    @property
    def owner(self) -> int | None:
        """The attempt whose lock it is."""
        return int(self.lock.rpartition(b":")[2]) if self.lock else None

    def takes_from(self, attempt: int) -> bool:
        """Whether `attempt` may append: a missing lock is nobody's, and goes to whom the row shows."""
        if self.lock:
            return self.owner == attempt
        return bool(self.row["attempt"] == attempt and not self.row["closed_at"])


def begins_alike(*events: bytes) -> bool:
    """Whether these are one opening, but for its time: the world moves its clocks, and with them when a run began."""
    said = [orjson.loads(event) | {"created_at": None, "updated_at": None} for event in events]
    return kind(events[0]) == "thread_run_start" and said[0] == said[1]


@dataclass
class Record:
    """One run as its readers know it."""

    name: str
    shown: dict[int, bytes] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    """Ids whose bytes no store and no process holds any more: `void` may stand there from now on, or how it began."""
    former: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    before: Sight | None = None
    stop_promised: bool = False

    def see(self, now: Sight, *, voids_expected: bool) -> None:
        before = self.before
        if before and now.row["attempt"] > before.row["attempt"]:
            self.lose_from(before)  # whoever knew more has lost the run, and what it knew with it
        fresh = self.merge(now)
        self.check_fence(before, fresh)
        if not voids_expected and before and (before.listed or before.archived):  # else silence looks like a loss
            assert not any(kind(event) == "void" for event in fresh.values()), f"{self.name}: void without a loss"
        if not now.remembered:
            self.lose_from(now)
        self.check_order()
        self.check_row(before, now)
        self.check_end(now)
        self.before = now

    def merge(self, now: Sight) -> dict[int, bytes]:
        """What is read now against what was read before; returns what nobody had read."""
        fresh: dict[int, bytes] = {}
        for found in (now.listed, now.archived):
            for number, event in enumerate(found):
                if self.show(number, event):
                    fresh[number] = event
        return fresh

    def show(self, number: int, event: bytes) -> bool:
        known = self.shown.get(number)
        if known == event:
            self.lost.discard(number)
            return False
        if known is not None:
            assert number in self.lost, f"{self.name}: id {number} was {known!r} and is {event!r}"
            again = kind(event) == "void" or begins_alike(known, event)
            assert again, f"{self.name}: lost id {number} was used again: {known!r}, {event!r}"
            self.former[number].append(known)
            self.lost.discard(number)
        self.shown[number] = event
        return known is None

    def check_fence(self, before: Sight | None, fresh: dict[int, bytes]) -> None:
        for number, event in fresh.items():
            if kind(event) != "chunk":
                continue
            [(attempt, _)] = tokens(event)
            assert before, "a run spoke before it was there"
            assert before.takes_from(attempt), (
                f"{self.name}: attempt {attempt} appended id {number} although the lock was {before.lock!r} "
                f"and the row's attempt {before.row['attempt']}"
            )

    def lose_from(self, sight: Sight) -> None:
        """What is in neither store is lost when no process remembers it."""
        held = max(len(sight.listed), len(sight.archived))
        self.lost.update(number for number in self.shown if number >= held)

    def check_order(self) -> None:
        """Nothing is said twice, and no attempt speaks after a later one."""
        said = [tokens(event)[0] for _, event in sorted(self.shown.items()) if kind(event) == "chunk"]
        assert said == sorted(set(said)), f"{self.name}: said in this order: {said}"

    def check_row(self, before: Sight | None, now: Sight) -> None:
        row = now.row
        assert row["archived_events"] == len(now.archived), f"{self.name}: the archive has a gap"
        if not before:
            return
        assert row["attempt"] >= before.row["attempt"], f"{self.name}: the fence was lowered"
        if before.final:
            for column in ("status", "error", "completed_at"):
                assert row[column] == before.row[column], f"{self.name}: its final {column} changed"
        if before.row["closed_at"]:
            for column in ("closed_at", "event_count", "archived_events"):
                assert row[column] == before.row[column], f"{self.name}: {column} changed after the end"
        if before.row["stop_requested_at"] and not before.final:
            self.stop_promised = True
        if self.stop_promised and now.final:
            assert row["status"] == "stopped", f"{self.name}: its stop was committed and it ended {row['status']}"

    def check_end(self, now: Sight) -> None:
        held = {number: event for number, event in self.shown.items() if number not in self.lost}
        ends = [number for number, event in held.items() if events.final_status(event)]
        assert len(ends) <= 1, f"{self.name}: last events at {ends}"
        if ends:
            assert now.final, f"{self.name}: its end was told before the row was final"
            assert held[ends[0]] == events.last_event(now.row["status"], now.row["error"]), f"{self.name}: a false end"
            assert ends[0] == max(held), f"{self.name}: events after the last one, which is {ends[0]}"
        if now.row["closed_at"]:
            assert ends == [len(now.archived) - 1], f"{self.name}: closed, and its archive is not whole"
            assert now.row["event_count"] == len(now.archived), f"{self.name}: a false count of events"

    def agrees(self, number: int, event: bytes) -> bool:
        """Whether a reader may have been shown this."""
        return self.shown.get(number) == event or event in self.former.get(number, ())

    def check_whole(self) -> None:
        """The grammar of a log that has ended; one that lost its last words unarchived says them twice."""
        assert self.before
        log = [event for event in self.before.archived if kind(event) != "void"]
        whole = len(log) == len(self.before.archived)
        said = [kind(event) for event in log]
        assert said[0] == "thread_run_start", f"{self.name} begins with {said[0]}"
        assert said[-2:] == ["thread_run_end", f"last:{self.before.row['status']}"], f"{self.name} ends {said[-2:]}"
        assert said.count("thread_run_start") == 1, f"{self.name}: {said}"
        assert said.count("thread_run_end") == 1 or not whole, f"{self.name}: {said}"
        assert not events.unstored_text(log), f"{self.name}: streamed text was not kept: {said}"


class Ledger:
    """All runs of one project."""

    def __init__(self) -> None:
        self.records: dict[UUID, Record] = {}
        self.messages: dict[UUID, Any] = {}
        self.voids_expected = False

    def see(self, sights: dict[UUID, Sight], messages: dict[UUID, Any]) -> None:
        for run_id, sight in sights.items():
            record = self.records.setdefault(run_id, Record(f"run {len(self.records)}"))
            record.see(sight, voids_expected=self.voids_expected)
        self.check_turns(sights.values())
        for message_id, content in self.messages.items():
            assert messages.get(message_id) == content, "a stored message changed"
        self.messages = messages

    def check_turns(self, sights: Iterable[Sight]) -> None:
        rows = [sight.row for sight in sights]
        running = [row for row in rows if row["status"] == "running"]
        assert len(running) <= 1, f"{len(running)} runs of one project are running"
        for row in running:
            if row["not_before"]:
                continue
            earlier = [
                other
                for other in rows
                if other["created_at"] < row["created_at"] and not other["not_before"] and not other["completed_at"]
            ]
            assert not earlier, "a run was begun before an earlier one had ended"

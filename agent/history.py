"""The thread as one run knows it: read once, then kept up to date with what is new."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

from agent.context import RunContext
from agent.thread_manager import patiently
from agent.turns import answer_id
from services import messages, run_messages
from services.messages import Message
from services.postgres import Connection

PAGE_ROWS = 200
PAGE_BYTES = 2 * 1024 * 1024
SHORT_ROWS, SHORT_BYTES = 20, 64 * 1024
LONGEST_BYTES = 16 * 1024 * 1024
"""More than the largest window of a model: what is older is left out, but for the beginning."""
ROW_BYTES = 300
"""Of a message that says next to nothing."""
OPENING_ROWS = 5
EVERYTHING = 2**63 - 1
COMMITTED_WITHIN = timedelta(seconds=60)
"""Positions are given out before a message is committed, so the newest are looked for again so long."""


@dataclass(slots=True)
class History:
    """`conversation`: oldest first, without what `summary` stands for. `counted`: older messages of the run, without
    their content. `beside`: what the model is shown for one turn, newest last. `covered`: what the run itself had
    summed up; `floor`: the position up to which nothing is looked for any more.
    """

    summary: Message | None = None
    conversation: list[Message] = field(default_factory=list)
    counted: list[Message] = field(default_factory=list)
    covered: list[Message] = field(default_factory=list)
    floor: int = 0
    beside: list[Message] = field(default_factory=list)

    def of_run(self, run_id: UUID) -> list[Message]:
        return [*self.counted, *(stored for stored in self.conversation if stored.agent_run_id == run_id)]

    def summarise(self, summary: Message, run_id: UUID) -> None:
        """Have a stored summary stand for what it covers."""
        covered = [stored for stored in self.conversation if stored.position <= summary.metadata["covers"]]
        self.summary, self.conversation = summary, self.conversation[len(covered) :]
        self.counted += [stored for stored in covered if stored.agent_run_id == run_id]
        self.covered += [replace(stored, content={}) for stored in covered]

    @property
    def last_answer(self) -> int:
        """The position at which the newest answer began; of what was summed up everything was seen."""
        answers = [stored for stored in self.conversation if stored.type == "assistant"]
        if not answers:
            return int(self.summary.metadata["covers"]) if self.summary else 0
        return next(stored.position for stored in answers if answer_id(stored) == answer_id(answers[-1]))

    def known_lately(self) -> tuple[int, list[UUID]]:
        """The position up to which everything is known, and which messages behind it are."""
        known = [*self.covered, *self.conversation]
        newest = max((stored.created_at for stored in known), default=None)
        lately = [stored for stored in known if newest and stored.created_at > newest - COMMITTED_WITHIN]
        floor = max((each.position for each in known[: len(known) - len(lately)]), default=self.floor)
        return floor, [stored.message_id for stored in lately]


async def load(ctx: RunContext) -> History:
    """Read the run's thread; waits while Postgres is away (the runner's claim decides)."""

    async def read(conn: Connection) -> History:
        whole = await whole_thread(conn, ctx.run.thread_id)
        if whole is not None:
            beside = await messages.temporary(conn, ctx.run.thread_id, History(conversation=whole).last_answer)
            return History(conversation=whole, beside=beside)
        summary = await messages.newest_summary(conn, ctx.run.thread_id)
        covered = summary.metadata["covers"] if summary else None
        newest = await newest_part(conn, ctx.run.thread_id, covered)
        oldest = newest[0].position if newest else EVERYTHING
        opening = [] if summary else await beginning(conn, ctx.run.thread_id, oldest)
        earlier = await run_messages.of_run(conn, ctx.run.id, oldest)
        summaries = [stored for stored in newest if stored.type == "summary" and stored.agent_run_id == ctx.run.id]
        counted = [stored for stored in earlier if stored.position not in {each.position for each in opening}]
        floor = covered or (oldest - 1 if opening else 0)
        history = History(summary, spoken([*opening, *newest]), [*counted, *summaries], floor=floor)
        history.beside = await messages.temporary(conn, ctx.run.thread_id, history.last_answer)
        return history

    return await patiently(ctx, read)


async def whole_thread(conn: Connection, thread_id: UUID) -> list[Message] | None:
    """A short thread without a summary, oldest first, in one look: nearly every thread; None of any other."""
    page, more = await messages.page(conn, thread_id, limit=SHORT_ROWS, max_bytes=SHORT_BYTES, for_model=True)
    if more or any(stored.type == "summary" for stored in page):
        return None
    return page[::-1]


async def newest_part(conn: Connection, thread_id: UUID, covered: int | None) -> list[Message]:
    """The newest messages behind position `covered`, oldest first, up to LONGEST_BYTES."""
    pages: list[Sequence[Message]] = []
    before, more, read = None, True, 0
    while more and read < LONGEST_BYTES:
        page, more = await messages.page(
            conn, thread_id, limit=PAGE_ROWS, before=before, after=covered, max_bytes=PAGE_BYTES, for_model=True
        )
        if not page:
            break
        pages.append(page)
        before, read = page[-1].position, read + sum(size_of(stored) for stored in page)
    return [stored for page in reversed(pages) for stored in reversed(page)]


async def beginning(conn: Connection, thread_id: UUID, before: int) -> list[Message]:
    """The first messages of a thread that is too long to be read whole; they say what it is about."""
    page, _ = await messages.page(
        conn,
        thread_id,
        limit=OPENING_ROWS,
        before=before,
        descending=False,
        max_bytes=PAGE_BYTES,
        for_model=True,
    )
    return page


def size_of(stored: Message) -> int:
    """About how many bytes of text a message is, without writing it out."""
    return ROW_BYTES + text_size(stored.content) + text_size(stored.metadata)


def text_size(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(text_size, value.values()))
    return sum(map(text_size, value)) if isinstance(value, list) else 8


def spoken(found: Iterable[Message]) -> list[Message]:
    """Without summaries: what they stand for is either there itself, or covered by the newest."""
    return [stored for stored in found if stored.type != "summary"]


async def refresh(ctx: RunContext, history: History) -> None:
    """Take in what was said since, by this run or by others, in its place."""

    async def read(conn: Connection) -> None:
        after, known = history.known_lately()
        found = await messages.newer(conn, ctx.run.thread_id, after, known)
        history.conversation = sorted([*history.conversation, *spoken(found)], key=lambda stored: stored.position)
        history.beside = await messages.temporary(conn, ctx.run.thread_id, history.last_answer)

    await patiently(ctx, read)

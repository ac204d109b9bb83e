"""Fit a thread into what its model can read: which messages are shortened, and which are left out. Pure.

First old results of tools, then (in `agent.summary`) a summary of the older part, then giants, then old words, then the
middle. What was once shortened stays so for the run: a prompt that changes every turn is not cached by the provider.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from agent import thread_manager, tokens
from agent.models import Model
from agent.thread_manager import as_dict
from services.messages import Message

SAFETY = 0.92
TARGET = 0.7
"""How far an overfull window is emptied, so that the next turns fit as they are."""
RECENT = 6
GIANT = 0.25
BRIEF_CHARS = 300
SHORT_CHARS = 2_000
LEAST_FACTOR, MOST_FACTOR = 0.3, 3.0
LARGEST_RESERVE = 0.25

Measure = Callable[[Sequence[Message]], Iterator[tuple[Message, int]]]


@dataclass(slots=True)
class Window:
    """`size`: tokens that a request may have; `fixed`: those of prompt and tools; `factor`: what the provider counts
    for each token that we estimate; `limits`: characters shown of each message that is shortened, 0 for one left out.
    """

    size: int
    fixed: int = 0
    factor: float = 1.0
    limits: dict[UUID, int] = field(default_factory=dict)
    costs: dict[UUID, tuple[int, int]] = field(default_factory=dict)
    """Of each message: its tokens whole, and its characters."""

    def calibrate(self, estimated: int, counted: int) -> None:
        """Learn from what the provider counted for a request."""
        if estimated > 0 and counted > 0:
            self.factor = min(max(counted / estimated, LEAST_FACTOR), MOST_FACTOR)

    def estimate(self, conversation: Iterable[Message]) -> int:
        """Tokens of a request, before calibration."""
        return self.fixed + int(sum(map(self.cost, conversation)))

    def overfull(self, conversation: Iterable[Message]) -> bool:
        return self.estimate(conversation) * self.factor > self.size

    def shrink(self, conversation: Iterable[Message]) -> None:
        """The provider refused a request for its length: it reads less than we think."""
        self.size = int(min(self.size, self.estimate(conversation) * self.factor) / 2)

    def cost(self, stored: Message) -> float:
        whole, chars = self.measure(stored)
        limit = self.limits.get(stored.message_id)
        if limit is None or limit >= chars:
            return whole
        return whole * limit / chars + (tokens.PER_MESSAGE * 5 if limit else 0)

    def measure(self, stored: Message) -> tuple[int, int]:
        known = self.costs.get(stored.message_id)
        if known is None:
            known = self.costs[stored.message_id] = measured(stored)
        return known

    def fit(self, conversation: Sequence[Message], measures: Iterable[Measure]) -> bool:
        """Take one measure after the other until an overfull window is emptied to its target; False when they do not
        suffice.
        """
        if not self.overfull(conversation):
            return True
        room = self.size * TARGET / self.factor - self.estimate(conversation)
        for measure in measures:
            for stored, limit in measure(conversation):
                if room >= 0:
                    return True
                before = self.cost(stored)
                self.limits[stored.message_id] = min(limit, self.limits.get(stored.message_id, limit))
                room += before - self.cost(stored)
        return room >= 0


def size_of_window(model: Model, set_size: int = 0) -> int:
    """Tokens that a request may have; room is kept for the answer."""
    whole = set_size or model.context_window
    return int((whole - min(model.max_output, whole * LARGEST_RESERVE)) * SAFETY)


def measured(stored: Message) -> tuple[int, int]:
    if stored.type == "tool":
        text = thread_manager.plain_text(stored)
        return tokens.PER_MESSAGE + tokens.of_text(text), len(text)
    shown = thread_manager.model_messages(stored, {}, {})[:1]
    cost = sum(map(tokens.of_message, shown))
    chars = sum(chars_of(said) for said in shown)
    return cost, max(chars, 1)


def chars_of(said: dict[str, object]) -> int:
    content, calls = said.get("content"), said.get("tool_calls")
    text = content if isinstance(content, str) else str(content or "")
    return len(text) + len(str(calls or ""))


def older(conversation: Sequence[Message]) -> Sequence[Message]:
    return conversation[: max(len(conversation) - RECENT, 0)]


def shorten_results(conversation: Sequence[Message]) -> Iterator[tuple[Message, int]]:
    """Old results of tools: first to a page, then to a glance."""
    for limit in (SHORT_CHARS, BRIEF_CHARS):
        yield from ((stored, limit) for stored in older(conversation) if stored.type == "tool")


def shorten_words(conversation: Sequence[Message]) -> Iterator[tuple[Message, int]]:
    """What was said long ago, but for the first words of a person: they are the task."""
    first = next((stored for stored in conversation if is_persons(stored)), None)
    yield from ((stored, SHORT_CHARS) for stored in older(conversation) if stored is not first)


def is_persons(stored: Message) -> bool:
    return stored.type == "user" and as_dict(stored.content).get("role", "user") == "user"


def leave_out_the_middle(conversation: Sequence[Message]) -> Iterator[tuple[Message, int]]:
    """From the middle outwards, but for the first message and the newest; an answer goes with its results."""
    turns: list[list[Message]] = []
    for stored in older(conversation)[1:]:
        if stored.type == "tool" and turns:
            turns[-1].append(stored)
        else:
            turns.append([stored])
    middle = len(turns) / 2
    for _, turn in sorted(enumerate(turns), key=lambda each: abs(each[0] - middle)):
        yield from ((stored, 0) for stored in turn)


def shorten_all(conversation: Sequence[Message]) -> Iterator[tuple[Message, int]]:
    """The last resort: even the newest."""
    for limit in (SHORT_CHARS, BRIEF_CHARS):
        yield from ((stored, limit) for stored in conversation)


def shorten_giants(window: Window) -> Measure:
    """Messages that alone would fill a quarter of the window."""
    share = window.size * TARGET * GIANT / window.factor

    def measure(conversation: Sequence[Message]) -> Iterator[tuple[Message, int]]:
        for stored in conversation:
            cost, chars = window.measure(stored)
            if cost > share:
                yield stored, int(chars * share / cost)

    return measure


def last_resorts(window: Window) -> tuple[Measure, ...]:
    return (shorten_giants(window), shorten_words, leave_out_the_middle, shorten_all)

"""A run's turns as the thread keeps them: an answer, its calls and their results. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.calls import ToolCall, calls_of, result_id
from services.messages import Message


@dataclass(frozen=True, slots=True)
class Turn:
    """`answer` is more than one message when tools started while the model still spoke."""

    answer: Sequence[Message]
    results: Sequence[Message]

    @property
    def calls(self) -> list[tuple[Message, ToolCall]]:
        return [(stored, call) for stored in self.answer for call in calls_of(stored)]

    @property
    def open_calls(self) -> list[tuple[Message, ToolCall]]:
        """Those without a result."""
        known = {stored.message_id for stored in self.results}
        return [(stored, call) for stored, call in self.calls if result_id(stored.message_id, call) not in known]

    @property
    def terminated(self) -> bool:
        return any(stored.metadata.get("agent_should_terminate") for stored in self.results)

    @property
    def cut(self) -> bool:
        """The answer ended in the middle of a call."""
        return self.answer[-1].metadata.get("finish_reason") == "length" or any(call.cut for _, call in self.calls)


def newest_answer(ours: Sequence[Message]) -> Message | None:
    """The newest answer among a run's messages, unless it was cut short."""
    answers = [stored for stored in ours if stored.type == "assistant"]
    return answers[-1] if answers and not answers[-1].metadata.get("interrupted") else None


def newest(ours: Sequence[Message]) -> Turn | None:
    """A run's newest turn, or None when the model is to be asked anew."""
    last = newest_answer(ours)
    if last is None:
        return None
    answer = [stored for stored in ours if stored.type == "assistant" and answer_id(stored) == answer_id(last)]
    ids = {result_id(stored.message_id, call) for stored in answer for call in calls_of(stored)}
    return Turn(answer, [stored for stored in ours if stored.message_id in ids])


def count(ours: Sequence[Message]) -> int:
    """How many answers a run's messages are."""
    return len({answer_id(stored) for stored in ours if stored.type == "assistant"})


def answer_id(stored: Message) -> str:
    """What the messages of one answer share."""
    return str(stored.metadata.get("answer_id") or stored.message_id)

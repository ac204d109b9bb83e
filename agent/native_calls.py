"""Fragments of native tool calls → whole calls. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from agent.calls import ToolCall
from agent.llm.chunk import ToolCallPart

MAX_CALLS = 128


@dataclass(slots=True)
class Growing:
    index: int
    call_id: str
    name: str = ""
    pieces: list[str] = field(default_factory=list)


class NativeCalls:
    """Calls as they grow; `count` numbers them among all calls of an answer."""

    def __init__(self, count: Callable[[], int]) -> None:
        self.count = count
        self.by_index: dict[int, Growing] = {}
        self.growing: list[Growing] = []
        self.begun = 0
        self.chars = 0

    def add(self, part: ToolCallPart) -> Growing | None:
        """The call that a fragment belongs to; None past the limit."""
        call = self.by_index.get(part.index)
        if call is None or (call.name and part.call_id and part.call_id != call.call_id):
            call = self.begin(part)
        if call is None:
            return None
        if part.name != call.name:  # some providers repeat the whole name
            call.name += part.name
        call.pieces.append(part.arguments)
        self.chars += len(part.arguments) + len(part.name)
        return call

    def begin(self, part: ToolCallPart) -> Growing | None:
        """Some providers give every call the index 0, and some give no ids."""
        if self.begun >= MAX_CALLS:
            return None
        self.begun += 1
        taken = {call.call_id for call in self.growing}
        call_id = part.call_id if part.call_id and part.call_id not in taken else f"call_{uuid4().hex[:24]}"
        call = Growing(self.count(), call_id)
        self.by_index[part.index] = call
        self.growing.append(call)
        return call

    def take(self, *, ended: bool) -> list[ToolCall]:
        """The calls that are complete: all once the answer `ended`, before that all but the newest."""
        whole = self.growing if ended else self.growing[:-1]
        self.growing = [] if ended else self.growing[-1:]
        return as_calls(whole)


def as_calls(growing: Sequence[Growing]) -> list[ToolCall]:
    """What came of them so far."""
    return [ToolCall(call.call_id, call.index, call.name, "".join(call.pieces)) for call in growing if call.name]

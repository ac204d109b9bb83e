"""A model's chunks → events for the readers, tool calls, and messages for the thread. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import orjson

from agent import calls
from agent.calls import ToolCall
from agent.llm.chunk import Chunk, ToolCallPart, Usage
from agent.native_calls import NativeCalls
from agent.tools.base import Registry, ToolResult
from agent.xml_arguments import arguments_of
from agent.xml_calls import XmlCall, XmlCalls
from services.messages import Message, NewMessage
from services.runs.events import Event, status


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model has said so far; `spoke` once a reader may have seen some of it."""

    spoke: bool = False
    text: str = ""
    reasoning: str = ""
    thinking_blocks: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


def fold(answer: Answer, chunk: Chunk) -> Answer:
    """The answer after one more chunk; a later usage replaces an earlier one (providers count up)."""
    return replace(
        answer,
        spoke=answer.spoke or chunk.speaks,
        text=answer.text + chunk.text,
        reasoning=answer.reasoning + chunk.reasoning,
        thinking_blocks=answer.thinking_blocks + chunk.thinking_blocks,
        finish_reason=chunk.finish_reason or answer.finish_reason,
        usage=chunk.usage or answer.usage,
    )


class Reading:
    """One answer as it is read: chunks in, events out, and the tool calls in it."""

    def __init__(self, run_id: UUID, tools: Registry, *, streamed: bool, max_xml_calls: int = 0) -> None:
        self.run_id, self.tools, self.streamed, self.max_xml_calls = run_id, tools, streamed, max_xml_calls
        self.answer = Answer()
        self.answer_id = str(uuid4())
        self.next_index: Callable[[], int] = count().__next__
        self.native = NativeCalls(self.next_index)
        self.xml = XmlCalls(tools.tags)
        self.xml_calls: list[ToolCall] = []
        self.chars = self.thoughts = 0

    @property
    def full(self) -> bool:
        """Nothing more of this answer is wanted."""
        return 0 < self.max_xml_calls <= self.xml.count

    @property
    def size(self) -> int:
        return self.chars + self.thoughts + self.native.chars

    def read(self, chunk: Chunk) -> list[Event]:
        if chunk.text:
            chunk = self.read_text(chunk)
        self.thoughts += len(chunk.reasoning)
        told = events(self.answer, chunk, self.run_id, streamed=self.streamed)
        for part in chunk.tool_calls:
            told += self.read_part(part)
        self.answer = fold(self.answer, chunk)
        return told

    def read_text(self, chunk: Chunk) -> Chunk:
        """The chunk, cut where the last call ends that is wanted."""
        before = self.chars
        self.chars += len(chunk.text)
        for found in self.xml.feed(chunk.text):
            self.xml_calls.append(self.written(found))
            if len(self.xml_calls) == self.max_xml_calls:
                reason = "xml_tool_limit_reached"
                return replace(chunk, text=chunk.text[: found.end - before], finish_reason=reason)
        return chunk

    def written(self, found: XmlCall) -> ToolCall:
        known = self.tools.get(found.name)
        given = arguments_of(found, known)
        return ToolCall(new_call_id(), self.next_index(), known.name if known else found.name, given, found.name)

    def read_part(self, part: ToolCallPart) -> list[Event]:
        call = self.native.add(part)
        return [call_chunk(part, call.index, call.call_id, call.name, self.run_id)] if call and self.streamed else []

    def take_calls(self, *, ended: bool = False) -> list[ToolCall]:
        """The calls that are complete and were not taken before; `ended`: nothing more of the answer comes."""
        found, self.xml_calls = self.xml_calls, []
        cut = self.cut_call() if ended else []
        return sorted([*found, *cut, *self.native.take(ended=ended)], key=lambda call: call.index)

    def cut_call(self) -> list[ToolCall]:
        """A call that began in the text and was not ended: an invoke always was one, a tag only if it was cut off."""
        begun = None if self.full else self.xml.unfinished
        if begun is None or not (begun[1] or self.answer.finish_reason == "length"):
            return []
        known = self.tools.get(begun[0])
        name = known.name if known else begun[0]
        return [ToolCall(new_call_id(), self.next_index(), name, {}, begun[0], cut=True)] if name else []

    @property
    def worth_keeping(self) -> bool:
        """Something was said, or counted, since the last message of this answer."""
        return bool(self.answer.text.strip() or self.answer.reasoning or self.answer.usage)

    def begin_anew(self) -> None:
        """What was said so far is stored; what comes is another message of the same answer."""
        self.answer = Answer(spoke=True)


def new_call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


def events(before: Answer, chunk: Chunk, run_id: UUID, *, streamed: bool) -> list[Event]:
    """What readers are told of one chunk after the answer `before` it; only the start when they want no stream."""
    opening = [status("assistant_response_start", run_id)] if chunk.speaks and not before.spoke else []
    return [*opening, *chunk_events(chunk, run_id)] if streamed else opening


def chunk_events(chunk: Chunk, run_id: UUID) -> list[Event]:
    events = []
    if chunk.reasoning:
        events.append(assistant_chunk({"content": "", "reasoning_content": chunk.reasoning}, run_id))
    if chunk.text:
        events.append(assistant_chunk({"content": chunk.text}, run_id))
    return events


def assistant_chunk(content: dict[str, Any], run_id: UUID) -> Event:
    return Event(
        "assistant",
        {"role": "assistant", **content},
        {"stream_status": "chunk", "thread_run_id": str(run_id)},
        is_llm_message=True,
    )


def call_chunk(part: ToolCallPart, index: int, call_id: str, name: str, run_id: UUID) -> Event:
    """A fragment of a native call, as it came."""
    fragment = {"name": part.name or None, "arguments": part.arguments}
    return status(
        "tool_call_chunk",
        run_id,
        role="assistant",
        function_name=name,
        xml_tag_name=None,
        message="",
        tool_index=index,
        tool_call_id=call_id,
        tool_call_chunk={"id": call_id, "index": index, "type": "function", "function": fragment},
    )


def message(answer: Answer, run_id: UUID, model: str, made: Sequence[ToolCall] = (), **metadata: Any) -> NewMessage:
    """The assistant's message as the thread keeps it, with its calls; `metadata` is added to what is known of it."""
    reasoning = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
    thinking = {"thinking_blocks": list(answer.thinking_blocks)} if answer.thinking_blocks else {}
    known = {"thread_run_id": str(run_id), "model": model, "finish_reason": answer.finish_reason}
    usage = {"usage": answer.usage.counted()} if answer.usage else {}
    return NewMessage(
        "assistant",
        {"role": "assistant", "content": answer.text, **reasoning, **thinking, **calls.as_content(made)},
        {**known, **usage, **calls.as_metadata(made), **metadata},
    )


def completed(stored: Message) -> Event:
    """The stored row, as readers are told of it."""
    return Event(
        stored.type,
        stored.content,
        {**stored.metadata, "stream_status": "complete"},
        message_id=stored.message_id,
        is_llm_message=stored.is_llm_message,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


def finished(stored: Message, run_id: UUID, reason: str | None = None) -> Event:
    """The end of an answer; `reason` where the run knows better than the model why it went no further."""
    return status("finish", run_id, finish_reason=reason or stored.metadata.get("finish_reason") or "stop")


def result_message(call: ToolCall, result: ToolResult, answer: Message, run_id: UUID, role: str) -> NewMessage:
    """What a call came to, as the thread keeps it; `role` is whose words an XML call's result is shown as."""
    content = native_result(call, result) if call.tag is None else xml_result(call, result, role)
    known = {
        "thread_run_id": str(run_id),
        "assistant_message_id": str(answer.message_id),
        "tool_call_id": call.call_id,
        "tool_index": call.index,
        "function_name": call.name,
        "xml_tag_name": call.tag,
        "tool_status": result.status,
    }
    ends = {"agent_should_terminate": True} if result.success and result.terminates else {}
    return NewMessage("tool", content, {**known, **ends}, message_id=calls.result_id(answer.message_id, call))


def native_result(call: ToolCall, result: ToolResult) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call.call_id, "name": call.name, "content": result.output}


def xml_result(call: ToolCall, result: ToolResult, role: str) -> dict[str, Any]:
    """The shape that frontends know: JSON in the words of a message."""
    told = {
        "function_name": call.name,
        "xml_tag_name": call.tag,
        "tool_call_id": call.call_id,
        "arguments": call.shown,
        "result": {
            "success": result.success,
            "output": result.output if result.success else None,
            "error": None if result.success else result.output,
        },
    }
    return {"role": role, "content": orjson.dumps({"tool_execution": told}).decode()}


def tool_started(call: ToolCall, run_id: UUID) -> Event:
    return tool_status("tool_started", call, run_id, f"Starting {call.tag or call.name}")


def tool_output(call: ToolCall, run_id: UUID, output: str) -> Event:
    """A piece of what a tool prints while it works; it is not stored."""
    told = tool_status("tool_output", call, run_id, "")
    return replace(told, content={**told.content, "output": output})


def tool_ended(call: ToolCall, stored: Message, run_id: UUID) -> Event:
    """`tool_completed`, `tool_failed` or `tool_error`, as the stored result says."""
    ended = stored.metadata["tool_status"]
    words = {"completed": "completed", "failed": "failed", "error": "broke off with an error"}
    event = tool_status(f"tool_{ended}", call, run_id, f"{call.tag or call.name} {words[ended]}")
    link = {"linked_tool_result_message_id": str(stored.message_id)}
    ends = {"agent_should_terminate": True} if stored.metadata.get("agent_should_terminate") else {}
    return replace(event, metadata={**event.metadata, **link, **ends})


def tool_status(kind: str, call: ToolCall, run_id: UUID, words: str) -> Event:
    return status(
        kind,
        run_id,
        role="assistant",
        function_name=call.name,
        xml_tag_name=call.tag,
        message=words,
        tool_index=call.index,
        tool_call_id=call.call_id,
    )

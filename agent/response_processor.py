"""A model's chunks → events for the readers and one message for the thread. Pure."""

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from agent.llm.chunk import Chunk, Usage
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


def message(answer: Answer, run_id: UUID, model: str, **metadata: Any) -> NewMessage:
    """The assistant's message as the thread keeps it; `metadata` is added to what is known of the answer."""
    reasoning = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
    thinking = {"thinking_blocks": list(answer.thinking_blocks)} if answer.thinking_blocks else {}
    known = {"thread_run_id": str(run_id), "model": model, "finish_reason": answer.finish_reason}
    usage = {"usage": answer.usage.counted()} if answer.usage else {}
    return NewMessage(
        "assistant",
        {"role": "assistant", "content": answer.text, **reasoning, **thinking},
        {**known, **usage, **metadata},
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


def finished(stored: Message, run_id: UUID) -> Event:
    return status("finish", run_id, finish_reason=stored.metadata.get("finish_reason") or "stop")

"""What a run says: the shapes and bytes of its events (CONTRACT section 5). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

FINAL_STATUSES = ("completed", "failed", "stopped")
FINAL_MESSAGES = {
    "completed": "The run completed.",
    "stopped": "The run was stopped.",
    "failed": "The run failed.",
}
MESSAGE_SHAPED = b'{"sequence":'


@dataclass(frozen=True, slots=True)
class Event:
    """One message-shaped event before it has its sequence number.

    `content` and `metadata` become JSON strings on the wire; `message_id` is set when a row is stored.
    """

    type: str
    content: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    message_id: UUID | None = None
    is_llm_message: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None


def status(status_type: str, run_id: UUID, **content: Any) -> Event:
    """A `type: status` event, for example `status("finish", run.id, finish_reason="stop")`."""
    return Event("status", {"status_type": status_type, **content}, {"thread_run_id": str(run_id)})


def encode(event: Event, *, sequence: int, thread_id: UUID, max_bytes: int) -> bytes:
    """The bytes of an event; one that is larger than `max_bytes` is shortened and says `truncated: true`."""
    content = orjson.dumps(event.content).decode()
    encoded = dump_message(event, content, event.metadata, sequence, thread_id)
    if len(encoded) <= max_bytes:
        return encoded
    shortened = orjson.dumps(shorten(event.content, max_bytes // 4)).decode()
    return dump_message(event, shortened, {**event.metadata, "truncated": True}, sequence, thread_id)


def dump_message(event: Event, content: str, metadata: dict[str, Any], sequence: int, thread_id: UUID) -> bytes:
    created_at = event.created_at or datetime.now(UTC)
    return orjson.dumps(
        {
            "sequence": sequence,
            "message_id": event.message_id,
            "thread_id": thread_id,
            "type": event.type,
            "is_llm_message": event.is_llm_message,
            "content": content,
            "metadata": orjson.dumps(metadata).decode(),
            "created_at": created_at,
            "updated_at": event.updated_at or created_at,
        },
        default=str,  # asyncpg's UUID is a subclass, which orjson does not take for one
    )


def shorten(value: Any, budget: int) -> Any:
    """Cut every text of a JSON value so that their sum is within `budget` bytes; says so in a dict."""
    if isinstance(value, str):
        return value.encode()[: max(budget, 0)].decode(errors="ignore")
    if isinstance(value, list):
        kept = value[:100]
        return [shorten(item, budget // max(len(kept), 1)) for item in kept]
    if isinstance(value, dict):
        short = sum(len(orjson.dumps(item)) for item in value.values() if not isinstance(item, str | list | dict))
        large = max(sum(isinstance(item, str | list | dict) for item in value.values()), 1)
        cut = {key: shorten(item, (budget - short) // large) for key, item in value.items()}
        return {**cut, "truncated": True}
    return value


def last_event(status: str, error: str | None) -> bytes:
    """The last event of a run; its bytes follow from the row alone."""
    return orjson.dumps({"type": "status", "status": status, "message": error or FINAL_MESSAGES[status]})


def final_status(event: bytes) -> str | None:
    """The final status an event announces, or None when it is not a last event (foreign ones included)."""
    if event.startswith(MESSAGE_SHAPED) or b'"status"' not in event[:64]:
        return None
    try:
        said = orjson.loads(event)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(said, dict) or said.get("type") != "status":
        return None
    return said["status"] if said.get("status") in FINAL_STATUSES else None


def unstored_text(events: Iterable[bytes]) -> str:
    """The assistant text streamed since the last stored row: what a stop must still keep."""
    chunks: list[str] = []
    for raw in events:
        said = parse(raw)
        if said is None:
            continue
        if voids_chunks(said):
            chunks.clear()
        elif said.get("type") == "assistant" and loads(said.get("metadata")).get("stream_status") == "chunk":
            chunks.append(str(loads(said.get("content")).get("content") or ""))
    return "".join(chunks)


def voids_chunks(said: dict[str, Any]) -> bool:
    if said.get("type") == "assistant":
        return loads(said.get("metadata")).get("stream_status") == "complete"
    return said.get("type") == "status" and loads(said.get("content")).get("status_type") == "run_resumed"


def parse(raw: bytes) -> dict[str, Any] | None:
    try:
        said = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None


def loads(text: Any) -> dict[str, Any]:
    """A JSON string of an event as a dict; anything else as an empty one."""
    value = parse(text.encode()) if isinstance(text, str) else text
    return value if isinstance(value, dict) else {}

"""What a run says: the shapes and bytes of its events (CONTRACT section 5). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
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
LONGEST_NAME = 200
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


def opening(run_id: UUID, began_at: datetime) -> Event:
    """The first event of a run, id 0; its bytes follow from the row alone, so it can be said again when it is lost."""
    said = status("thread_run_start", run_id)
    return replace(said, created_at=began_at)


def encode(event: Event, sequence: int, thread_id: str, max_bytes: int) -> bytes:
    """The bytes of an event; one that is larger than `max_bytes` is shortened and says `truncated: true`."""
    encoded = dump_message(event, event.content, event.metadata, sequence, thread_id)
    budget = max_bytes // 2
    while len(encoded) > max_bytes:
        content, metadata = shorten(event.content, budget), shorten(event.metadata, budget // 4)
        encoded = dump_message(event, content, {**metadata, "truncated": True}, sequence, thread_id)
        budget //= 4
    return encoded


def dump_message(
    event: Event, content: dict[str, Any], metadata: dict[str, Any], sequence: int, thread_id: str
) -> bytes:
    created_at = event.created_at or datetime.now(UTC)
    return orjson.dumps(
        {
            "sequence": sequence,
            "message_id": event.message_id,
            "thread_id": thread_id,
            "type": event.type,
            "is_llm_message": event.is_llm_message,
            "content": orjson.dumps(content, default=str).decode(),
            "metadata": orjson.dumps(metadata, default=str).decode(),
            "created_at": created_at,
            "updated_at": event.updated_at or created_at,
        },
        default=str,  # asyncpg's UUID is a subclass, which orjson does not take for one
    )


def shorten(value: Any, budget: int) -> Any:
    """A JSON value cut down to about `budget` bytes: texts, lists and dicts share it, and a cut dict says so."""
    if isinstance(value, str):
        return value.encode()[: max(budget, 0)].decode(errors="ignore")
    if isinstance(value, list):
        kept = value[: min(len(value), max(budget, 0) // 16)]
        return [shorten(item, budget // max(len(kept), 1)) for item in kept]
    if isinstance(value, dict):
        names = [name for name in value if len(name) <= LONGEST_NAME][: max(budget, 0) // 32]
        small = {name: value[name] for name in names if not isinstance(value[name], str | list | dict)}
        share = budget // max(len(names) - len(small), 1)
        return {name: small.get(name, shorten(value[name], share)) for name in names} | {"truncated": True}
    return value


def last_event(status: str, error: str | None) -> bytes:
    """The last event of a run; its bytes follow from the row alone."""
    return orjson.dumps({"type": "status", "status": status, "message": error or FINAL_MESSAGES[status]})


def final_status(event: bytes) -> str | None:
    """The final status an event announces, or None when it is not a last event (foreign ones included)."""
    if event.startswith(MESSAGE_SHAPED) or event.find(b'"status"', 0, 64) < 0:
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

"""How the scripted provider of `tests.fakes` speaks Anthropic's Messages API: the same replies, other bytes.

A reply's deltas are those of OpenAI's dialect, or `{"event": {...}}` for an event of Anthropic's that has no such form.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fakes import Asked, Reply

SIGNATURE = "c2lnbmVkIGJ5IHRoZSBtYWtlcg=="
STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "content_filter": "refusal"}
QUOTA = "insufficient_quota"
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


def error(reply: Reply) -> dict[str, Any]:
    """The body of an answer that is an error."""
    return {"type": "error", "error": error_object(reply.status, reply.error), "request_id": "req_1"}


def error_object(status: int, told: Mapping[str, Any]) -> dict[str, Any]:
    kind = ERROR_TYPES.get(status, "api_error")
    details = {"details": {"error_code": "enforced_spend_limit_reached"}} if told.get("code") == QUOTA else {}
    return {"type": kind, "message": told.get("message", ""), **details}


async def stream(reply: Reply, asked: Asked, hang: float) -> AsyncIterator[bytes]:
    """The body, piece by piece."""
    writer = Writer()
    yield sse({"type": "message_start", "message": message(asked, reply.usage)})
    yield sse({"type": "ping"})
    async for delta in reply.spoken(asked):
        yield b"".join(map(sse, writer.events(delta)))
    if reply.ending == "hang":
        await asyncio.sleep(hang)
    if reply.ending == "error":
        yield sse({"type": "error", "error": error_object(reply.error["code"], reply.error)})
    if reply.ending in ("finish", "finish_and_cut"):
        yield b"".join(map(sse, [*writer.close(), message_delta(reply)]))
    if reply.ending == "finish":
        yield sse({"type": "message_stop"})


def message(asked: Asked, usage: Mapping[str, Any] | None) -> dict[str, Any]:
    counted = {"input_tokens": (usage or {}).get("prompt_tokens", 0), "output_tokens": 1}
    shape: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": None}
    return {**shape, "model": asked.model, "usage": counted}


def message_delta(reply: Reply) -> dict[str, Any]:
    stop = STOP_REASONS.get(reply.finish_reason, reply.finish_reason)
    usage = reply.usage or {}
    counted = {"output_tokens": usage.get("completion_tokens", 0)}
    counted |= {name: count for name, count in usage.items() if name.endswith("_input_tokens")}
    return {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": counted}


class Writer:
    """Opens and closes content blocks around OpenAI's deltas."""

    def __init__(self) -> None:
        self.index = -1
        self.kind: Any = None

    def events(self, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if "event" in delta:
            yield delta["event"]
        for name in ("reasoning_content", "reasoning"):
            if name in delta:
                yield from self.go_on("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self.delta("thinking_delta", thinking=delta[name])
        if "content" in delta:
            yield from self.go_on("text", {"type": "text", "text": ""})
            yield self.delta("text_delta", text=delta["content"])
        for part in delta.get("tool_calls", ()):
            yield from self.tool_call(part)

    def tool_call(self, part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        function = part.get("function", {})
        named = {"id": part.get("id", ""), "name": function.get("name", "")}
        yield from self.go_on(("tool_use", part["index"]), {"type": "tool_use", **named, "input": {}})
        yield self.delta("input_json_delta", partial_json=function.get("arguments", ""))

    def go_on(self, kind: Any, block: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """Nothing while the block of this kind is open; else the end of the last and the start of this one."""
        if kind == self.kind:
            return
        yield from self.close()
        self.index += 1
        self.kind = kind
        yield {"type": "content_block_start", "index": self.index, "content_block": dict(block)}

    def close(self) -> Iterator[dict[str, Any]]:
        if self.kind == "thinking":
            yield self.delta("signature_delta", signature=SIGNATURE)
        if self.kind is not None:
            yield {"type": "content_block_stop", "index": self.index}
        self.kind = None

    def delta(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self.index, "delta": {"type": kind, **fields}}


def sse(event: Mapping[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

"""Events of Anthropic's stream → chunks. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from agent.llm.chunk import Chunk, ToolCallPart, Usage, readable
from agent.llm.failures import Reported

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
STATUSES = {
    "invalid_request_error": "400",
    "authentication_error": "401",
    "billing_error": "402",
    "permission_error": "403",
    "not_found_error": "404",
    "rate_limit_error": "429",
    "api_error": "500",
    "timeout_error": "504",
    "overloaded_error": "529",
}
NOTHING = Chunk()


@dataclass(slots=True)
class Block:
    """A content block that has begun; `call` is the place among the calls of a block that is one."""

    content: dict[str, Any]
    position: tuple[int, int]
    thoughts: list[str] = field(default_factory=list)
    call: int | None = None
    has_arguments: bool = False


@dataclass(slots=True)
class Reader:
    """Reads one answer, event by event."""

    blocks: dict[int, Block] = field(default_factory=dict)
    thinking: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    chars: int = 0
    calls: int = 0

    def read(self, event: Any) -> Chunk:
        """The chunk that an event says, NOTHING for one that says none; unknown events and fields are passed over.

        Raises: Reported for an error event.
        """
        told = mapping(event)
        index = whole(told.get("index"))
        match told.get("type"):
            case "message_start":
                self.count(mapping(told.get("message")).get("usage"))
            case "content_block_start":
                return self.begin(index, mapping(told.get("content_block")))
            case "content_block_delta":
                return self.go_on(self.blocks.get(index), mapping(told.get("delta")))
            case "content_block_stop":
                return self.end(self.blocks.pop(index, None))
            case "message_delta":
                self.count(told.get("usage"))
                return self.finish(mapping(told.get("delta")).get("stop_reason"))
            case "error":
                error = mapping(told.get("error"))
                raise Reported(readable(error.get("message")), STATUSES.get(str(error.get("type")), ""))
        return NOTHING

    def begin(self, index: int, content: Mapping[str, Any]) -> Chunk:
        block = self.blocks[index] = Block(dict(content), (self.chars, self.calls))
        match content.get("type"):
            case "tool_use":
                block.call = self.calls
                self.calls += 1
                part = ToolCallPart(block.call, readable(content.get("id")), readable(content.get("name")))
                return Chunk(tool_calls=(part,))
            case "text":
                return self.say(content.get("text"))
            case "thinking":
                return think(block, content.get("thinking"))
        return NOTHING

    def go_on(self, block: Block | None, delta: Mapping[str, Any]) -> Chunk:
        if block is None:
            return NOTHING
        match delta.get("type"):
            case "text_delta":
                return self.say(delta.get("text"))
            case "thinking_delta":
                return think(block, delta.get("thinking"))
            case "signature_delta":
                block.content["signature"] = delta.get("signature")
            case "input_json_delta":
                return call(block, readable(delta.get("partial_json")))
        return NOTHING

    def end(self, block: Block | None) -> Chunk:
        if block is None:
            return NOTHING
        if block.call is not None and not block.has_arguments:
            return call(block, orjson.dumps(block.content.get("input") or {}).decode())
        self.thinking += keep(block)
        return NOTHING

    def say(self, text: Any) -> Chunk:
        mended = readable(text)
        self.chars += len(mended)
        return Chunk(text=mended) if mended else NOTHING

    def count(self, usage: Any) -> None:
        """A later count replaces an earlier one (they are sums), field by field."""
        self.usage |= {name: count for name, count in mapping(usage).items() if count is not None}

    def finish(self, reason: Any) -> Chunk:
        word = FINISH_REASONS.get(reason, reason) if isinstance(reason, str) else None
        # Only now: an answer that breaks off before it said anything is asked for again, and thought about again.
        thinking, self.thinking = tuple(self.thinking), []
        return Chunk(thinking_blocks=thinking, finish_reason=word, usage=self.total() if self.usage else None)

    def total(self) -> Usage:
        read, written = self.tokens("cache_read_input_tokens"), self.tokens("cache_creation_input_tokens")
        # Anthropic counts what came from its cache, or went there, apart; OpenAI's prompt tokens include it.
        prompt, completion = self.tokens("input_tokens") + read + written, self.tokens("output_tokens")
        details = mapping(self.usage.get("output_tokens_details"))
        reasoning = whole(details.get("thinking_tokens"))
        return Usage(prompt, completion, prompt + completion, read, written, reasoning)

    def tokens(self, name: str) -> int:
        return whole(self.usage.get(name))


def think(block: Block, text: Any) -> Chunk:
    if isinstance(text, str):
        block.thoughts.append(text)
    mended = readable(text)
    return Chunk(reasoning=mended) if mended else NOTHING


def call(block: Block, arguments: str) -> Chunk:
    if block.call is None or not arguments:
        return NOTHING
    block.has_arguments = True
    return Chunk(tool_calls=(ToolCallPart(block.call, arguments=arguments),))


def keep(block: Block) -> list[dict[str, Any]]:
    """The block as it must be sent back, or none when it cannot be: unsigned, or with what no store takes."""
    kept = dict(block.content)
    if kept.get("type") == "thinking":
        kept["thinking"] = "".join(block.thoughts)
    elif kept.get("type") != "redacted_thinking":
        return []
    seal = kept.get("signature") or kept.get("data")
    if not seal or any(readable(text) != text for text in kept.values()):
        return []
    return [{**kept, "position": list(block.position)} if any(block.position) else kept]


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def whole(count: Any) -> int:
    return count if isinstance(count, int) else 0

"""Chunk: one piece of a model's answer, whichever provider it came from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A fragment of a tool call: `index` says which call it belongs to, `arguments` is a piece of JSON."""

    index: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, as the provider counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None

    @property
    def speaks(self) -> bool:
        """Something a reader may have seen: after it, asking again would say it twice."""
        return bool(self.text or self.reasoning or self.tool_calls)

"""Chunk: one piece of a model's answer, whichever provider it came from."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A fragment of a tool call: `index` says which call it belongs to, `arguments` is a piece of JSON."""

    index: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, as the provider counted them.

    `prompt_tokens` include those read from and written to its cache, `completion_tokens` those of reasoning.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def counted(self) -> dict[str, int]:
        """The three sums, and of the details those that are not zero."""
        sums = ("prompt_tokens", "completion_tokens", "total_tokens")
        return {name: tokens for name, tokens in asdict(self).items() if tokens or name in sums}


@dataclass(frozen=True, slots=True)
class Chunk:
    """`thinking_blocks` are whole blocks of reasoning as Anthropic signed them, said when the answer ends.

    They are kept in the assistant's message (`thinking_blocks`, beside `reasoning_content`) and sent back unchanged;
    `position`, where a block has one, is `[characters of text, tool calls]` that came before it.
    """

    text: str = ""
    reasoning: str = ""
    thinking_blocks: tuple[dict[str, Any], ...] = ()
    tool_calls: tuple[ToolCallPart, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None

    @property
    def speaks(self) -> bool:
        """Something a reader may have seen: after it, asking again would say it twice."""
        return bool(self.text or self.reasoning or self.tool_calls)


def readable(text: Any) -> str:
    """Text that every store takes: no NUL, and no half of a surrogate pair from a character cut in two."""
    if not isinstance(text, str):
        return ""
    return text.replace("\x00", "").encode(errors="replace").decode()

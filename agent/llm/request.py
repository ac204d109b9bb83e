"""What a model is asked."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """`model` is a resolved name (`prefix/name`); `messages` are in the OpenAI shape, system prompt first.

    `tools` are OpenAI function schemas; `expected_tokens` about what the provider will count for all of it;
    `max_output` how many tokens the answer may have, where somebody pays for it.
    An assistant's message may also hold `thinking_blocks` (see Chunk).
    """

    model: str
    messages: list[dict[str, Any]]
    reasoning_effort: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    expected_tokens: int = 0
    max_output: int | None = None

    @property
    def last_user_text(self) -> str:
        said = [message for message in self.messages if message["role"] == "user"]
        return plain_text(said[-1]["content"]) if said else ""


def plain_text(content: Any) -> str:
    """The text of a message's content, which is a string, a list of parts, or None beside calls of tools."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())

"""How many tokens something is, about. Pure.

An estimate only: providers count exactly, and what they counted corrects it (agent.compaction). It must not be far too
low for any text: a quarter of the characters is up to 2.8 times too low for Chinese, JSON and base64.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from services.text_tokens import CHARS_OF_CODE, of_text

__all__ = ["of_content", "of_message", "of_text", "of_tools"]

PER_MESSAGE = 6
PER_IMAGE = 1600
"""What Anthropic counts for the largest image that it does not scale down; OpenAI's high detail is less."""


def of_content(content: Any) -> int:
    if isinstance(content, str):
        return of_text(content)
    if not isinstance(content, list):
        return 0
    return sum(PER_IMAGE if part.get("type") == "image_url" else of_text(part.get("text") or "") for part in content)


def of_message(said: Mapping[str, Any]) -> int:
    """Of a model message: its content, its calls, and thoughts that go back."""
    functions = [call["function"] for call in said.get("tool_calls", ())]
    calls = sum(of_text(function["name"]) + of_text(function["arguments"]) for function in functions)
    thoughts = sum(of_text(str(block.get("thinking") or "")) for block in said.get("thinking_blocks") or ())
    return PER_MESSAGE + of_content(said.get("content")) + calls + thoughts


def of_tools(schemas: Iterable[Mapping[str, Any]]) -> int:
    return sum(int(len(orjson.dumps(schema)) / CHARS_OF_CODE) for schema in schemas)

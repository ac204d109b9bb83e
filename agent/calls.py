"""A tool call, as the thread keeps it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import orjson

from agent.tools.base import BadArguments
from services.messages import Message

QUOTED_CHARS = 500


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON as the model wrote it, or from XML a dict; `tag` is the XML tag, None for a native call.

    `cut` says that the answer ended in the middle of the call.
    """

    call_id: str
    index: int
    name: str
    arguments: str | dict[str, Any]
    tag: str | None = None
    cut: bool = False

    @property
    def given(self) -> dict[str, Any]:
        """Raises: BadArguments."""
        if self.cut:
            raise BadArguments(f"The call of {self.name} was cut off before its end. Make it again, shorter.")
        return self.arguments if isinstance(self.arguments, dict) else parse_arguments(self.name, self.arguments)

    @property
    def shown(self) -> dict[str, Any] | str:
        """The arguments as far as they can be read."""
        try:
            return self.given
        except BadArguments:
            return self.arguments


def parse_arguments(name: str, text: str) -> dict[str, Any]:
    """Raises: BadArguments."""
    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise BadArguments(f"The arguments of {name} are no JSON ({error}): {text[:QUOTED_CHARS]}") from error
    if not isinstance(value, dict):
        raise BadArguments(f"The arguments of {name} must be a JSON object: {text[:QUOTED_CHARS]}")
    return value


def as_content(calls: Iterable[ToolCall]) -> dict[str, Any]:
    """What native calls add to the content of their assistant message."""
    native = [
        {
            "id": call.call_id,
            "type": "function",
            "index": call.index,
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
        if call.tag is None
    ]
    return {"tool_calls": native} if native else {}


def as_metadata(calls: Iterable[ToolCall]) -> dict[str, Any]:
    """What XML calls add to the metadata of their assistant message, whose text they are part of."""
    written = [
        {
            "id": call.call_id,
            "index": call.index,
            "function_name": call.name,
            "xml_tag_name": call.tag,
            "arguments": call.arguments,
            **({"cut": True} if call.cut else {}),
        }
        for call in calls
        if call.tag is not None
    ]
    return {"xml_tool_calls": written} if written else {}


def calls_of(stored: Message) -> list[ToolCall]:
    """The calls of a stored assistant message, in order; what is no call is left out."""
    content = stored.content if isinstance(stored.content, dict) else {}
    native = [read_native(place, call) for place, call in enumerate(dicts(content.get("tool_calls")))]
    written = [read_xml(place, call) for place, call in enumerate(dicts(stored.metadata.get("xml_tool_calls")))]
    return sorted((call for call in (*native, *written) if call.name), key=lambda call: call.index)


def read_native(place: int, call: dict[str, Any]) -> ToolCall:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    return ToolCall(
        text(call.get("id")),
        number(call.get("index"), place),
        text(function.get("name")),
        arguments if isinstance(arguments, str | dict) else "",
    )


def read_xml(place: int, call: dict[str, Any]) -> ToolCall:
    arguments, name = call.get("arguments"), text(call.get("function_name"))
    return ToolCall(
        text(call.get("id")),
        number(call.get("index"), place),
        name,
        arguments if isinstance(arguments, dict) else {},
        text(call.get("xml_tag_name")) or name,
        bool(call.get("cut")),
    )


def dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def number(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default


def result_id(answer_id: UUID, call: ToolCall) -> UUID:
    """The id of a call's result: it can be stored only once."""
    return uuid5(answer_id, f"{call.index} {call.call_id}")

"""What a server answered to a call → the text that the model reads. Pure."""

from typing import Any

import orjson
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from agent.mcp.redaction import Redactor
from agent.tools.base import ToolResult

MAX_CHARS = 95_000
MARGIN = 20_000
"""Read beyond the end, so that a secret there is seen whole before it is cut."""
NOTHING = "The tool gave nothing back."


def read(result: CallToolResult, redact: Redactor) -> ToolResult:
    return ToolResult(bounded(text_of(result), redact), success=not result.is_error)


def bounded(text: str, redact: Redactor) -> str:
    told = redact(text[: MAX_CHARS + MARGIN])[:MAX_CHARS]
    left = len(text) - MAX_CHARS
    return f"{told}\n[{left} more characters were left out]" if left > 0 else told


def text_of(result: CallToolResult) -> str:
    parts = [part for content in result.content if (part := described(content))]
    structured = result.structured_content
    if structured is not None and not any(says(part, structured) for part in parts):
        parts.append(orjson.dumps(structured, option=orjson.OPT_INDENT_2, default=str).decode())
    return "\n".join(parts) or NOTHING


def described(content: Any) -> str:
    match content:
        case TextContent():
            return content.text
        case ImageContent() | AudioContent():
            return left_out(content.type, content.mime_type, content.data)
        case ResourceLink():
            return " ".join(filter(None, (f"[{content.title or content.name}]({content.uri})", content.description)))
        case EmbeddedResource(resource=TextResourceContents() as inside):
            return f"{inside.uri}:\n{inside.text}"
        case EmbeddedResource(resource=BlobResourceContents() as inside):
            return left_out(f"file {inside.uri}", inside.mime_type or "", inside.blob)
    return f"[{getattr(content, 'type', 'something')} left out]"


def left_out(what: str, mime_type: str, base64: str) -> str:
    return f"[{what} {mime_type}, {len(base64) * 3 // 4 // 1024 + 1} KiB, left out]"


def says(text: str, structured: Any) -> bool:
    """Most servers write the structured content as text, too; the SDK's wrap what is no object in `result`.

    A text that is cut anyway is not compared.
    """
    if structured == {"result": text} or len(text) > MAX_CHARS:
        return True
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return bool(structured in (said, {"result": said}))

"""What a call in XML gives its tool. Pure."""

import re
from typing import Any

from agent.tools.base import Tool
from agent.xml_calls import XmlCall, trim

ELEMENT = re.compile(r"\s*<([A-Za-z_][\w.-]*)>")


def arguments_of(call: XmlCall, known: Tool | None) -> dict[str, Any]:
    """Its parameters; of a tag its attributes, and its body as elements or as the one parameter that is the body."""
    if call.body is None or not call.body.strip():
        return dict(call.given)
    names = known.arguments.described if known else {}
    inside = elements(call.body, names)
    if inside is None:
        inside = {known.body if known and known.body else "content": call.body}
    return {**call.given, **inside}


def elements(body: str, names: Any) -> dict[str, str] | None:
    """The parameters in a body that holds nothing but `<name>value</name>`, else None."""
    found: dict[str, str] = {}
    end = 0
    while opening := ELEMENT.match(body, end):
        name = opening.group(1)
        close = body.find(f"</{name}>", opening.end())
        if name not in names or close < 0:
            return None
        found[name] = trim(body[opening.end() : close])
        end = close + len(name) + 3
    return found if found and not body[end:].strip() else None

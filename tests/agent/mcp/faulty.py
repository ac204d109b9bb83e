"""An MCP server over stdio that misbehaves as its arguments say: `faulty.py hang-on-call`."""

import json
import os
import sys
import time
from typing import Any

HOW = set(sys.argv[1:])
MARK = os.environ.get("MARK", "")
FLOOD = 50 * 1024 * 1024

PLAIN = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
LIES: list[Any] = [
    {"name": "no object", "inputSchema": "a string"},
    {"name": "no-object", "inputSchema": ["a", "list"]},
    {"name": "no_object", "inputSchema": {"type": "array", "items": {"type": "string"}}},
    {"name": "recursive", "inputSchema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    {
        "name": "tree",
        "inputSchema": {
            "type": "object",
            "properties": {"root": {"$ref": "#/$defs/node"}, "many": {"type": "array"}, "bad name!": {}},
            "required": ["root", "bad name!", 7],
            "anyOf": [{"required": ["root"]}],
            "$defs": {"node": {"type": "object", "properties": {"children": {"items": {"$ref": "#/$defs/node"}}}}},
        },
    },
    {"name": "types", "inputSchema": {"type": "object", "properties": {"a": {"type": "int"}, "b": 3, "c": None}}},
    {"name": "types", "inputSchema": {"type": "object", "properties": {"other": {"type": "string"}}}},
    {"name": 7, "inputSchema": {}},
    {"name": "x" * 150, "description": 5, "outputSchema": "none", "annotations": "none"},
    "not a tool",
]
ECHO = {
    "name": "echo",
    "description": f"Echo a text. {MARK}",
    "inputSchema": PLAIN,
    "outputSchema": {"type": "object", "required": ["what it never gives"]},
    "annotations": {"readOnlyHint": "look" in HOW},
}


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def hang() -> None:
    while True:
        time.sleep(60)


def flood() -> None:
    for _ in range(FLOOD // 65_536):
        sys.stdout.write("x" * 65_536)
    sys.stdout.flush()


def die() -> None:
    if "loudly" in HOW:
        sys.stderr.write("a word " * 2_000 + f"out of luck with {MARK}\n")
    sys.exit(3)


def noted(word: str) -> int:
    """How often a word was noted before in the file that NOTES names; notes it."""
    with open(os.environ["NOTES"], "a+") as notes:
        notes.seek(0)
        before = notes.read().split().count(word)
        notes.write(f"{word} ")
    return before


def call(asked: dict[str, Any]) -> dict[str, Any]:
    text = (asked.get("arguments") or {}).get("text", "")
    if "hang-on-call" in HOW:
        if "NOTES" in os.environ:
            noted("called")
        hang() if "deaf" in HOW else None
        return {}
    if "die-on-call" in HOW or ("die-on-first-call" in HOW and not noted("called")):
        die()
    if "flood-on-call" in HOW:
        flood()
    if "error" in HOW:
        return {"content": [{"type": "text", "text": f"{text} cannot be done; {MARK}"}], "isError": True}
    if "nonsense" in HOW:
        return {"content": [{"type": "text", "text": 7}]}
    content: list[dict[str, Any]] = [{"type": "text", "text": f"{text} {MARK}".strip()}]
    if "rich" in HOW:
        content.append({"type": "image", "data": "AAAA" * 1000, "mimeType": "image/png"})
        content.append({"type": "resource_link", "uri": "file:///a.txt", "name": "a.txt", "description": "A file."})
        content.append({"type": "resource", "resource": {"uri": "file:///b.txt", "text": "inside b"}})
        return {"content": content, "structuredContent": {"answer": 42}}
    return {"content": content}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        if "hang-on-connect" in HOW:
            hang()
        if "die-on-connect" in HOW or ("die-on-second-connect" in HOW and noted("connected")):
            die()
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "faulty", "version": "1"},
            "instructions": f"Be careful. {MARK}",
        }
    if method == "tools/list":
        if "hang-on-list" in HOW:
            hang()
        if "flood-on-list" in HOW:
            flood()
        if "endless-list" in HOW:
            page = int(params.get("cursor", 0))
            return {"tools": [{**ECHO, "name": f"tool{page}"}], "nextCursor": str(page + 1)}
        return {"tools": LIES if "lie" in HOW else [ECHO, {**ECHO, "name": "other"}]}
    return call(params) if method == "tools/call" else None


def main() -> None:
    if "noise" in HOW:
        sys.stdout.write("Welcome to faulty!\n{not json\n{}\n\n")
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["method"] == "notifications/cancelled" and "NOTES" in os.environ:
            noted("cancelled")
        if "id" not in asked:
            continue
        result = answer(asked["method"], asked.get("params") or {})
        if result is None:
            send({"id": asked["id"], "error": {"code": -32601, "message": f"Method not found {MARK}".strip()}})
        elif result:
            send({"id": asked["id"], "result": result})


main()

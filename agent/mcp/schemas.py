"""A server's input schema → a JSON schema of type object that every provider takes. Pure.

Servers send recursive references, types that do not exist, and things that are no schema at all; one such tool in a
request, and the provider refuses the whole of it.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

KINDS = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
MAX_DEPTH = 8
MAX_NODES = 500
MAX_CHARS = 30_000
MAX_PROPERTIES = 100
MAX_TEXT_CHARS = 1_000
MAX_CHOICES = 100
PROPERTY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Anthropic refuses a request with any other name of a property."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
HEADER = "x-mcp-header"
"""Says that an argument also travels as an HTTP header: the SDK reads it, and sends it."""


def clean(said: Any) -> dict[str, Any]:
    """The schema, bounded in depth and size, its references replaced by what they mean."""
    cleaned = Cleaning(said).root() if isinstance(said, dict) else {}
    if len(orjson.dumps(cleaned)) > MAX_CHARS:
        cleaned = shallow(cleaned)
    return {"type": "object", "properties": {}, **cleaned}


def shallow(cleaned: dict[str, Any]) -> dict[str, Any]:
    """Of a schema that is too large the names and types of its parameters, as many as fit."""
    left = MAX_CHARS // 2
    kept: dict[str, Any] = {}
    for name, known in cleaned.get("properties", {}).items():
        kind = known.get("type")
        kept[name] = {"type": kind} if isinstance(kind, str) and kind not in ("array", "object") else {}
        left -= len(name) + 30
        if left < 0:
            break
    return {"properties": kept, "required": [name for name in cleaned.get("required", []) if name in kept]}


class Cleaning:
    """One schema as it is gone through."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said = said
        self.nodes = 0

    def root(self) -> dict[str, Any]:
        """Only parameters: providers take neither a choice nor a reference in its place."""
        found = self.resolved(self.said, frozenset())[0] or {}
        kinds = known_kinds(found.get("type"))
        if kinds and "object" not in kinds:
            return {}
        cleaned = self.object_keywords(found, 1, frozenset())
        return cleaned if found.get("additionalProperties") is False else without(cleaned, "additionalProperties")

    def node(self, said: Any, depth: int, seen: frozenset[str]) -> dict[str, Any]:
        self.nodes += 1
        if not isinstance(said, Mapping) or depth > MAX_DEPTH or self.nodes > MAX_NODES:
            return {}
        found, seen = self.resolved(said, seen)
        if found is None:
            return {}
        kinds = known_kinds(found.get("type"))
        cleaned: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds} if kinds else {}
        cleaned |= words(found) | limits(found) | choices(found)
        if "properties" in found or "object" in kinds:
            cleaned |= self.object_keywords(found, depth, seen)
        if "items" in found or "array" in kinds:
            cleaned["items"] = self.node(found.get("items"), depth + 1, seen)
        return cleaned | self.branches(found, depth, seen)

    def object_keywords(self, found: Mapping[str, Any], depth: int, seen: frozenset[str]) -> dict[str, Any]:
        said = found.get("properties")
        named = [
            (name, inner)
            for name, inner in (said.items() if isinstance(said, Mapping) else ())
            if isinstance(name, str) and PROPERTY.fullmatch(name)
        ]
        properties = {name: self.node(inner, depth + 1, seen) for name, inner in named[:MAX_PROPERTIES]}
        wanted = found.get("required")
        needed = [name for name in wanted if name in list(properties)] if isinstance(wanted, list) else []
        cleaned: dict[str, Any] = {"properties": properties} if properties else {}
        if needed:
            cleaned["required"] = list(dict.fromkeys(needed))
        return cleaned | self.others(found.get("additionalProperties"), depth, seen)

    def others(self, said: Any, depth: int, seen: frozenset[str]) -> dict[str, Any]:
        if isinstance(said, bool):
            return {"additionalProperties": said}
        return {"additionalProperties": self.node(said, depth + 1, seen)} if isinstance(said, Mapping) else {}

    def branches(self, found: Mapping[str, Any], depth: int, seen: frozenset[str]) -> dict[str, Any]:
        cleaned = {}
        for name in ("anyOf", "oneOf", "allOf"):
            if isinstance(said := found.get(name), list) and said:
                cleaned[name] = [self.node(inner, depth + 1, seen) for inner in said[:MAX_CHOICES]]
        return cleaned

    def resolved(
        self, said: Mapping[str, Any], seen: frozenset[str]
    ) -> tuple[Mapping[str, Any] | None, frozenset[str]]:
        """What a `$ref` means, with what is said beside it; None for one that leads nowhere or back to itself."""
        while isinstance(reference := said.get("$ref"), str):
            target = None if reference in seen else self.target(reference)
            if target is None:
                return None, seen
            seen = seen | {reference}
            beside = {name: value for name, value in said.items() if name != "$ref"}
            said = {**target, **beside}
        return said, seen

    def target(self, reference: str) -> Mapping[str, Any] | None:
        """Only inside the same schema: nothing is fetched."""
        if not reference.startswith("#"):
            return None
        found: Any = self.said
        for step in reference[1:].strip("/").split("/"):
            if step:
                found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else None


def without(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != name}


def known_kinds(said: Any) -> list[str]:
    named = said if isinstance(said, list) else [said]
    return list(dict.fromkeys(kind for kind in named if isinstance(kind, str) and kind in KINDS))


def words(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: said[:MAX_TEXT_CHARS]
        for name in ("description", "format")
        if isinstance(said := found.get(name), str) and said
    } | header(found)


def header(found: Mapping[str, Any]) -> dict[str, Any]:
    return {HEADER: said} if isinstance(said := found.get(HEADER), str) and len(said) <= 200 else {}


def limits(found: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: found[name] for name in COUNTS if is_count(found.get(name))}
    return counts | {name: found[name] for name in NUMBERS if is_number(found.get(name))}


def choices(found: Mapping[str, Any]) -> dict[str, Any]:
    """`enum` and `const` of plain values, and a small `default`."""
    cleaned: dict[str, Any] = {}
    said = found.get("enum")
    if isinstance(said, list) and 0 < len(said) <= MAX_CHOICES and all(is_plain(value) for value in said):
        cleaned["enum"] = [value for index, value in enumerate(said) if value not in said[:index]]
    if "const" in found and is_plain(found["const"]):
        cleaned["enum"] = [found["const"]]
    if "default" in found and is_plain(found["default"]):
        cleaned["default"] = found["default"]
    return cleaned


def is_plain(value: Any) -> bool:
    return (
        value is None or isinstance(value, bool) or is_number(value) or (isinstance(value, str) and len(value) <= 200)
    )


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53

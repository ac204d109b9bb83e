"""What a tool takes: a pydantic model of our own, or a JSON schema that somebody else wrote."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

MAX_COMPLAINTS = 10


class Unfit(Exception):
    """Arguments that do not fit; one line for each."""

    def __init__(self, *complaints: str) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


class Parameters(Protocol):
    """What a tool takes."""

    @property
    def schema(self) -> dict[str, Any]:
        """As a JSON schema of type object."""
        ...

    @property
    def described(self) -> Mapping[str, str]:
        """Each parameter's name, and the words that stand for its value in an example."""
        ...

    def check(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments with the types they are meant to have. Raises: Unfit."""
        ...


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


@cache
def schema_of(model: type[Arguments]) -> dict[str, Any]:
    """Made once: pydantic takes a millisecond for it, and every turn of every run shows all tools."""
    cleaned: dict[str, Any] = without_titles(model.model_json_schema())
    return cleaned


@dataclass(frozen=True, slots=True)
class Typed:
    """Parameters of a function in Python, exact to the last constraint."""

    model: type[Arguments]

    @property
    def schema(self) -> dict[str, Any]:
        return schema_of(self.model)

    @property
    def described(self) -> Mapping[str, str]:
        return {name: describe(field) for name, field in self.model.model_fields.items()}

    def check(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            read = self.model.model_validate({name: self.parsed(name, value) for name, value in given.items()})
        except ValidationError as error:
            wrong = error.errors()[:MAX_COMPLAINTS]
            raise Unfit(*(f"{'.'.join(map(str, at['loc'])) or 'arguments'}: {at['msg']}" for at in wrong)) from error
        return {name: getattr(read, name) for name in self.model.model_fields}

    def parsed(self, name: str, value: Any) -> Any:
        """XML, and some models everywhere, write lists and objects as text."""
        known = self.model.model_fields.get(name)
        if known is None or known.annotation is str:
            return value
        return from_text(value)


@dataclass(frozen=True, slots=True)
class Described:
    """Parameters in a stranger's JSON schema of type object: missing ones and plainly wrong types are told, the rest
    is left to who wrote the schema.
    """

    schema: dict[str, Any]

    @property
    def properties(self) -> dict[str, Any]:
        known: dict[str, Any] = self.schema.get("properties") or {}
        return known

    @property
    def required(self) -> list[str]:
        return list(self.schema.get("required") or [])

    @property
    def described(self) -> Mapping[str, str]:
        return {
            name: (first_line(known.get("description")) or "…") + ("" if name in self.required else " (optional)")
            for name, known in self.properties.items()
        }

    def check(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        read = {name: typed(value, kinds_of(self.properties.get(name))) for name, value in given.items()}
        missing = [f"{name}: Field required" for name in self.required if name not in read]
        wrong = [
            f"{name}: Input should be {' or '.join(kinds)}"
            for name, value in read.items()
            if (kinds := kinds_of(self.properties.get(name))) and not any(KINDS[kind](value) for kind in kinds)
        ]
        if missing or wrong:
            raise Unfit(*(missing + wrong)[:MAX_COMPLAINTS])
        return read


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: is_number(value) and float(value).is_integer(),
    "number": is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
"""The types of JSON schema, and what is one of them."""


def kinds_of(schema: Any) -> list[str]:
    """The types that a schema names; none when it leaves them open."""
    said = schema.get("type") if isinstance(schema, dict) else None
    kinds = [said] if isinstance(said, str) else said or []
    return kinds if all(kind in KINDS for kind in kinds) else []


def typed(value: Any, kinds: list[str]) -> Any:
    """A value that was written as text, as the type that is wanted where it can be one."""
    if not isinstance(value, str) or "string" in kinds:
        return value
    read = from_text(value) if not kinds else loads(value.strip())
    return read if not kinds or any(KINDS[kind](read) for kind in kinds) else value


def from_text(value: Any) -> Any:
    """A list or an object that was written as text; anything else as it is."""
    return loads(value) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


def loads(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def without_titles(schema: Any) -> Any:
    """A JSON schema without pydantic's titles, which only repeat the names; a property may be named `title`."""
    if isinstance(schema, list):
        return [without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: without_titles(inner) for key, inner in value.items()}
        if name in ("properties", "$defs")
        else without_titles(value)
        for name, value in schema.items()
        if name != "title"
    }


def describe(known: FieldInfo) -> str:
    return (known.description or "…") + ("" if known.is_required() else " (optional)")


def first_line(text: Any) -> str:
    return text.strip().split("\n", 1)[0] if isinstance(text, str) else ""

"""What the stores could not keep of a request's field, refused by name."""

import sys
from typing import Any

import orjson
from pydantic import HttpUrl, TypeAdapter

MAX_METADATA_BYTES = 16 * 1024
MAX_JSON_DEPTH = 100
LARGEST_INTEGER = 2**63
WEB_ADDRESS = TypeAdapter(HttpUrl)


def storable_text(value: str) -> str:
    """Postgres keeps neither NUL nor half a surrogate pair."""
    if "\x00" in value:
        raise ValueError("must not contain the character U+0000")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode") from error
    return value


def not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def web_address(value: str) -> str:
    WEB_ADDRESS.validate_python(value)
    return value


def small_object(value: dict[str, Any]) -> dict[str, Any]:
    try:
        encoded = orjson.dumps(value)
    except TypeError as error:
        raise ValueError("must be plain JSON") from error
    if len(encoded) > MAX_METADATA_BYTES:
        raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes of JSON")
    for text in texts(value):
        storable_text(text)
    return value


def texts(value: Any) -> list[str]:
    """Every string of a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return []


def shallow(value: Any) -> Any:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH} levels")
        level = [item for outer in level for item in children(outer) if isinstance(item, dict | list)]
    return value


def finite(value: Any) -> Any:
    for number in numbers(value):
        if not abs(number) <= sys.float_info.max:
            raise ValueError("must not contain a number that is larger than a double can be, or none")
    return value


def of_64_bits(value: Any) -> Any:
    """What is kept as JSON by orjson, which knows no larger whole numbers."""
    for number in numbers(value):
        if isinstance(number, int) and abs(number) >= LARGEST_INTEGER:
            raise ValueError("must not contain a whole number of more than 64 bits")
    return value


def numbers(value: Any) -> list[int | float]:
    if isinstance(value, int | float):
        return [value]
    return [number for item in children(value) for number in numbers(item)]


def children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []

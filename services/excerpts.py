"""Excerpts of what a run handles, for eyes elsewhere: bounded, and without our secrets."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson
from pydantic import BaseModel, SecretStr

MAX_CHARS = 10_000
STRING_CHARS = 2_000
"""Of a string inside a list or an object."""
MAX_ITEMS = 16
MAX_DEPTH = 6
SHORTEST_SECRET = 6


class Excerpts:
    """Knows the secrets of the settings; what tools were told by others is the tools' to keep."""

    def __init__(self, settings: BaseModel) -> None:
        found = sorted({each for each in secrets_of(settings) if len(each) >= SHORTEST_SECRET}, key=len, reverse=True)
        self.longest = max(map(len, found), default=0)
        self.secrets = re.compile("|".join(map(re.escape, found)) or r"(?!)")

    def text(self, value: str, limit: int = MAX_CHARS) -> str:
        if value.startswith("data:"):
            return f"data: ({len(value)} characters)"
        # Stars of the same length: what is cut off cannot move to the front as half a secret.
        cut = self.secrets.sub(lambda found: "*" * len(found[0]), value[: limit + self.longest])
        cut = cut.encode(errors="replace").decode()  # half a surrogate pair would lose the whole batch
        return cut if len(value) <= limit else f"{cut[:limit]}… ({len(value)} characters)"

    def json(self, value: Any) -> str:
        """A string as it is, anything else as JSON; of long lists the first item and the last ones."""
        if isinstance(value, str):
            return self.text(value)
        written = orjson.dumps(self.parts(value, MAX_DEPTH)).decode()
        return written if len(written) <= MAX_CHARS else f"{written[:MAX_CHARS]}… ({len(written)} characters)"

    def parts(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**53):
            return value
        if isinstance(value, Mapping) and depth:
            items = islice(value.items(), 4 * MAX_ITEMS)
            return {self.string(key): self.parts(inner, depth - 1) for key, inner in items}
        if isinstance(value, list | tuple) and depth:
            return [self.parts(inner, depth - 1) for inner in shortened(value)]
        return self.string(value)

    def string(self, value: Any) -> str:
        return self.text(value if isinstance(value, str) else type(value).__name__, STRING_CHARS)


def shortened(items: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    left_out = len(items) - MAX_ITEMS
    if left_out <= 0:
        yield from items
        return
    yield items[0]
    yield f"… ({left_out} more)"
    yield from items[left_out + 1 :]


def secrets_of(settings: BaseModel) -> Iterator[str]:
    """Every secret that is set; of one that is a URL its password too."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from secrets_of(value)
        elif isinstance(value, SecretStr):
            secret = value.get_secret_value().strip()
            yield secret
            yield from passwords_in(secret) if "://" in secret else values_in(secret)


def values_in(secret: str) -> Iterator[str]:
    """Of several with commas between them each, and of `name=value` the value."""
    for part in secret.split(","):
        yield part.strip()
        yield part.partition("=")[2].strip()


def passwords_in(urls: str) -> Iterator[str]:
    for url in urls.split(";"):
        yield from passwords(url)


def passwords(url: str) -> Iterator[str]:
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return
    yield from (password, unquote(password))

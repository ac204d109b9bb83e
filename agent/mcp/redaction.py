"""Secrets of a server's configuration, taken out of everything that is told. Pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from agent.mcp.config import ServerConfig
from services.agent_secrets import LOOKS_RANDOM

SHORTEST = 6
"""Shorter values would be found in words that have nothing to do with them."""
MASK = "[secret]"
TELLING_PARTS = ("title", "description", "format", "default", "examples", "enum", "const")
"""Parts of a schema in which a server is free to write what it likes."""
HARMLESS = re.compile(r"(?:^|_)(?:tz|timezone|lang|language|locale|lc_\w+|path|home|region|mode|level|term)$", re.I)
TELLING = re.compile(r"key|token|secret|pass|auth|credential|pat$|bearer", re.I)
SCHEME = re.compile(r"(?:Bearer|Basic|Token|ApiKey)\s+", re.I)


class Redactor:
    """Takes the secrets of one server out of texts."""

    def __init__(self, config: ServerConfig, *more: str) -> None:
        found = {value for value in (*secrets(config), *more) if len(value) >= SHORTEST}
        longest_first = sorted(found, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if found else None

    def __call__(self, text: str) -> str:
        return self.pattern.sub(MASK, text) if self.pattern else text

    def in_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A server that was handed a secret may offer it as a default; the words of schemas themselves stay."""
        return {name: self.part(name, said) for name, said in schema.items()} if self.pattern else schema

    def part(self, name: str, said: Any) -> Any:
        if name in TELLING_PARTS:
            return self.everywhere(said)
        if name == "properties" and isinstance(said, dict):
            return {key: self.in_schema(inner) if isinstance(inner, dict) else inner for key, inner in said.items()}
        if isinstance(said, dict):
            return self.in_schema(said)
        return [self.part("", item) for item in said] if isinstance(said, list) else said

    def everywhere(self, said: Any) -> Any:
        if isinstance(said, str):
            return self(said)
        if isinstance(said, dict):
            return {key: self.everywhere(inner) for key, inner in said.items()}
        return [self.everywhere(item) for item in said] if isinstance(said, list) else said


def secrets(config: ServerConfig) -> Iterator[str]:
    for value in config.headers.values():
        yield value
        yield SCHEME.sub("", value, count=1)
    for name, value in config.env.items():
        if not HARMLESS.search(name):
            yield value
    yield from in_url(config.url)
    yield from in_options(config.options)
    yield from in_arguments(config.argv)


def in_url(url: str) -> Iterator[str]:
    """Its query, and what looks random in its path; the whole of it, should somebody quote it."""
    parts = urlsplit(url)
    for _, value in parse_qsl(parts.query):
        yield value
    if parts.query:
        yield parts.query
    for piece in parts.path.split("/"):
        if LOOKS_RANDOM.fullmatch(unquote(piece)):
            yield from (piece, unquote(piece))


def in_options(options: Any) -> Iterator[str]:
    if isinstance(options, str):
        yield options
    elif isinstance(options, Mapping):
        for name, value in options.items():
            if not (isinstance(name, str) and HARMLESS.search(name)):
                yield from in_options(value)
    elif isinstance(options, list):
        for value in options:
            yield from in_options(value)


def in_arguments(argv: tuple[str, ...]) -> Iterator[str]:
    """`--api-key VALUE`, `--token=VALUE`, `NAME_KEY=VALUE`, and what looks random."""
    for before, argument in zip(("", *argv), argv, strict=False):
        name, equals, value = argument.partition("=")
        if equals and TELLING.search(name):
            yield value
        elif (before.startswith("-") and TELLING.search(before)) or LOOKS_RANDOM.fullmatch(argument):
            yield argument

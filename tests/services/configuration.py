"""docs/configuration.md, written from the settings themselves: `python -m tests.services.configuration [--check]`."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from services.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "configuration.md"
HEAD = """\
# Configuration

Every setting of Longrun, from `services/settings/` (written by `python -m tests.services.configuration`; a test
compares them). They are read once, at the start of a process, from its environment and from `.env` in the folder that
it is started in; the environment wins. What is wrong is named, and nothing starts. All processes of an installation
need the same ones.

Durations take `ms`, `s`, `m`, `h`, `d`; a bare number is seconds. Sizes are bytes. Secrets never show in logs or
errors. Where no default stands it is empty. [SECURITY.md](../SECURITY.md) lists what production refuses;
`.env.example` is a template.
"""
TITLES = {
    "api": "API",
    "api_keys": "API keys",
    "mcp": "MCP",
    "auth": "Access tokens",
    "qstash": "QStash",
    "opentelemetry": "OpenTelemetry",
}
TABLE = ("| name | type | default | what for |", "| --- | --- | --- | --- |")
KINDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", SecretStr: "secret"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Setting:
    name: str
    field: FieldInfo
    purpose: str

    @property
    def kind(self) -> str:
        kind = self.field.annotation
        if get_origin(kind) is Literal:
            return " or ".join(f"`{choice}`" for choice in get_args(kind))
        if kind is timedelta:
            return "duration"
        if get_origin(kind) in (tuple, dict, list):
            return "JSON"
        bounds = [
            f"{word} {getattr(rule, key):,}"
            for rule in self.field.metadata
            for key, word in BOUNDS.items()
            if hasattr(rule, key)
        ]
        return ", ".join([KINDS[kind], *bounds])  # type: ignore[index]  # a kind that is not there is a KeyError


def sections() -> Iterator[tuple[str, list[Setting]]]:
    for title, section in Settings.model_fields.items():
        model: Any = section.annotation
        yield TITLES.get(title, title.replace("_", " ").capitalize()), list(settings_of(model))


def settings_of(model: type[BaseModel]) -> Iterator[Setting]:
    prefix = str(model.model_config.get("env_prefix", ""))
    purposes = purposes_in(model)
    for name, field in model.model_fields.items():
        yield Setting(str(field.validation_alias or f"{prefix}{name}".upper()), field, purposes.get(name, ""))


def purposes_in(model: type[BaseModel]) -> dict[str, str]:
    """What stands under each field of the class."""
    (source,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(source, ast.ClassDef)
    found = {}
    for field, below in zip(source.body, source.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text(below):
            found[field.target.id] = " ".join(below.value.value.split())  # type: ignore[attr-defined]  # as asked
    return found


def is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def defaults() -> dict[str, str]:
    """As an operator would write them: a test holds the template against the settings."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z0-9_]+=", line))


def text() -> str:
    parts, known = [HEAD], defaults()
    for title, settings in sections():
        rows = [f"| `{one.name}` | {one.kind} | {shown(known[one.name])} | {one.purpose} |" for one in settings]
        parts.append("\n".join([f"## {title}\n", *TABLE, *rows, ""]))
    return "\n".join(parts)


def shown(value: str) -> str:
    return f"`{value}`" if value else ""


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        DOCUMENT.write_text(text())
        return 0
    missing = [one.name for _, settings in sections() for one in settings if not one.purpose]
    if missing:
        sys.stderr.write(f"say below each field what it is for: {', '.join(missing)}\n")
    elif DOCUMENT.read_text() != text():
        sys.stderr.write("docs/configuration.md is not of these settings: python -m tests.services.configuration\n")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Texts with expressions between braces: `Hello {{ variables.name }}`.

A text that is nothing but one expression keeps the type of its value.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from agent.workflows import expressions
from agent.workflows.bounds import Budget
from agent.workflows.expressions import MAX_CHARS, BadExpression, Scope

WEIGHT_OF_ONE = 50
"""Characters that take as long to read as beginning with an expression."""
OPENING, CLOSING = "{{", "}}"
BRACE = re.compile(r"""'(?:[^'\\]|\\.)*(?:'|\Z)|"(?:[^"\\]|\\.)*(?:"|\Z)|`(?:[^`\\]|\\.)*(?:`|\Z)|[{}]""", re.DOTALL)
"""A brace of an expression, or what is quoted in it."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """An expression in a text."""

    expression: str


@lru_cache(maxsize=2048)
def parts(text: str) -> tuple[str | Embedded, ...]:
    """A text as its words and the expressions between them. Raises: BadExpression."""
    return tuple(each for each in split(text) if each != "")


def split(text: str) -> Iterator[str | Embedded]:
    at = 0
    while (start := text.find(OPENING, at)) >= 0:
        yield text[at:start]
        inner, at = first_expression(text, start + len(OPENING))
        yield Embedded(inner)
    yield text[at:]


def first_expression(text: str, start: int) -> tuple[str, int]:
    """The expression from `start` to closing braces, which it may hold itself, and where the text goes on."""
    end = end_of(text, start)
    inner = text[start:end].strip()
    expressions.check(inner)
    return inner, end + len(CLOSING)


def end_of(text: str, start: int) -> int:
    """Where the expression ends that begins at `start`, by its braces alone. Raises: BadExpression."""
    most = start + MAX_CHARS + len(CLOSING)
    depth = 0
    for found in BRACE.finditer(text, start, most):
        if found[0] == "{":
            depth += 1
        elif found[0] == "}" and depth:
            depth -= 1
        elif found[0] == "}":
            break
    else:
        found = None
    end = found.start() if found else text.find(CLOSING, start, most)
    if end < 0 or not text.startswith(CLOSING, end):
        raise BadExpression(f"{OPENING} is not closed by {CLOSING}")
    return end


def weight(value: Any) -> int:
    """How many characters of expressions are in the texts of a JSON value, and some for each; nothing is read yet."""
    return sum(map(weight_of_text, texts(value)))


def weight_of_text(text: str) -> int:
    found = at = 0
    while (start := text.find(OPENING, at)) >= 0:
        try:
            at = end_of(text, start + len(OPENING)) + len(CLOSING)
        except BadExpression:
            break  # whoever reads it will say so
        found += at - start + WEIGHT_OF_ONE
    return found


def check(value: Any) -> None:
    """Raises: BadExpression for the first bad expression in the texts of a JSON value."""
    for text in texts(value):
        parts(text)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def render(value: Any, scope: Scope, budget: Budget | None = None) -> Any:
    """A JSON value with the expressions in its texts replaced by their values.

    Raises: BadExpression, ExpressionFailed.
    """
    budget = budget or Budget()
    if isinstance(value, list):
        return [render(item, scope, budget) for item in value]
    if isinstance(value, dict):
        return {name: render(item, scope, budget) for name, item in value.items()}
    return render_text(value, scope, budget) if isinstance(value, str) else value


def render_text(text: str, scope: Scope, budget: Budget) -> Any:
    found = parts(text)
    if len(found) == 1 and isinstance(found[0], Embedded):
        return expressions.evaluate(found[0].expression, scope, budget)
    said = (
        each if isinstance(each, str) else as_text(expressions.evaluate(each.expression, scope, budget))
        for each in found
    )
    return "".join(said)


def as_text(value: Any) -> str:
    """A value in a text: null is nothing, and what is no text is JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()

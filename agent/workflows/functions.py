"""What expressions may call: JMESPath's own functions, with arithmetic and texts added."""

from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from jmespath.functions import Functions, signature

from agent.workflows.bounds import ExpressionFailed, bounded, small
from services.fields import shallow

MAX_SPLITS = 20_000

F = TypeVar("F", bound=Callable[..., Any])


def takes(*types: str) -> Callable[[F], F]:
    kinds: list[Any] = [{"types": [each]} for each in types]
    return signature(*kinds)


class Library(Functions):
    """One method for each function that is added."""

    @takes("number", "number")
    def _func_add(self, left: float, right: float) -> float:
        return small(left + right)

    @takes("number", "number")
    def _func_subtract(self, left: float, right: float) -> float:
        return small(left - right)

    @takes("number", "number")
    def _func_multiply(self, left: float, right: float) -> float:
        return small(left * right)

    @takes("number", "number")
    def _func_divide(self, left: float, right: float) -> float:
        return small(left / right)

    @takes("number", "number")
    def _func_modulo(self, left: float, right: float) -> float:
        return small(left % right)

    @takes("string")
    def _func_lower(self, text: str) -> str:
        return text.lower()

    @takes("string")
    def _func_upper(self, text: str) -> str:
        return text.upper()

    @takes("string")
    def _func_trim(self, text: str) -> str:
        return text.strip()

    @takes("string", "string")
    def _func_split(self, text: str, separator: str) -> list[str]:
        if text.count(separator) > MAX_SPLITS:
            raise ExpressionFailed(f"split() would give more than {MAX_SPLITS:,} parts")
        return text.split(separator)

    @takes("string", "string", "string")
    def _func_replace(self, text: str, old: str, new: str) -> str:
        bounded(len(text) + text.count(old) * len(new))
        return text.replace(old, new)

    @takes("string", "array-string")
    def _func_join(self, glue: str, texts: list[str]) -> str:
        bounded(len(glue) * len(texts) + sum(map(len, texts)))
        return glue.join(texts)

    @takes("string")
    def _func_parse_json(self, text: str) -> Any:
        return shallow(orjson.loads(text))


LIBRARY = Library()

"""Expressions over the values of an execution: JMESPath and a few functions, within bounds of work, size and time."""

import warnings
from functools import lru_cache
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, ParseError
from jmespath.visitor import Options, TreeInterpreter

from agent.workflows.bounds import MAX_RESULT_BYTES, MAX_STEPS, Budget, ExpressionFailed, bounded, small
from agent.workflows.functions import LIBRARY
from services.fields import finite, shallow
from services.postgres import storable_text

MAX_CHARS = 2_000

# Or a mistyped literal would quietly be a text.
warnings.filterwarnings("error", "deprecated string literal syntax", PendingDeprecationWarning)

Scope = dict[str, Any]
Failures = (JMESPathError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What JMESPath raises for values that an expression was not made for."""


class BadExpression(Exception):
    """A text that is no expression; the text says why."""


class Evaluation(TreeInterpreter):
    """One expression at work. Lists and objects may share what is in them, so size is what they are written out."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(Options(custom_functions=LIBRARY))
        self.budget = budget
        self.steps = 0
        self.sizes: dict[int, tuple[Any, int]] = {}

    def visit(self, node: Any, *arguments: Any, **named: Any) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ExpressionFailed(f"it takes more than {MAX_STEPS:,} steps")
        if self.steps % 16 == 0:
            self.budget.check_time()
        return super().visit(node, *arguments, **named)

    def visit_multi_select_list(self, node: Any, value: Any) -> Any:
        return self.sized(super().visit_multi_select_list(node, value))

    def visit_multi_select_dict(self, node: Any, value: Any) -> Any:
        return self.sized(super().visit_multi_select_dict(node, value))

    def visit_comparator(self, node: Any, value: Any) -> Any:
        left, right = (self.sized(self.visit(child, value)) for child in node["children"])
        known: Any = {**node, "children": [{"type": "literal", "value": left}, {"type": "literal", "value": right}]}
        return super().visit_comparator(known, value)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        given = [self.visit(child, value) for child in node["children"]]
        for argument in given:
            self.sized(argument)
        made = self.sized(LIBRARY.call_function(node["value"], given))
        self.budget.take(self.size(made))
        return made

    def sized(self, value: Any) -> Any:
        bounded(self.size(value))
        return value

    def size(self, value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, list | dict):
            return 8
        known = self.sizes.get(id(value))
        if known is None:
            keys = sum(map(len, value)) if isinstance(value, dict) else 0
            items = value.values() if isinstance(value, dict) else value
            known = self.sizes[id(value)] = value, 2 + keys + sum(map(self.size, items)) + len(value)
        return known[1]


def check(text: str) -> None:
    """Raises: BadExpression."""
    parsed(text)


@lru_cache(maxsize=2048)
def parsed(text: str) -> Any:
    """The syntax tree. Raises: BadExpression."""
    if len(text) > MAX_CHARS:
        raise BadExpression(f"an expression has at most {MAX_CHARS:,} characters")
    try:
        tree = jmespath.compile(text).parsed
        check_functions(tree)
    except RecursionError as error:
        raise BadExpression("it is nested too deeply") from error
    except ParseError as error:
        raise BadExpression(first_line(error)) from error
    except PendingDeprecationWarning as error:
        raise BadExpression("what stands between backticks must be JSON") from error
    except (JMESPathError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadExpression(str(error)) from error
    return tree


def first_line(error: ParseError) -> str:
    """Without the drawing of where it is."""
    return " ".join(str(error).split("\n", 1)[0].removesuffix(", for expression:").split())


def check_functions(node: Any) -> None:
    if not isinstance(node, dict):
        return
    if node["type"] == "function_expression":
        known = LIBRARY.FUNCTION_TABLE.get(node["value"])
        if known is None:
            raise BadExpression(f"there is no function {node['value']}()")
        check_arity(node["value"], known["signature"], len(node["children"]))
    for child in node["children"]:
        check_functions(child)


def check_arity(name: str, takes: Any, given: int) -> None:
    many = bool(takes and takes[-1].get("variadic"))
    if given < len(takes) or (given > len(takes) and not many):
        raise BadExpression(f"{name}() takes {len(takes)}{' or more' if many else ''} arguments, not {given}")


def evaluate(text: str, scope: Scope, budget: Budget | None = None) -> Any:
    """The value of an expression, as JSON of its own that shares nothing with the scope.

    `budget`: that of the value that it is a part of. Raises: BadExpression, ExpressionFailed.
    """
    budget = budget or Budget()
    evaluation = Evaluation(budget)
    try:
        value = evaluation.visit(parsed(text), scope)
        size = evaluation.size(value)
        budget.take(size)
        if size > MAX_RESULT_BYTES:
            raise ExpressionFailed(f"its value has more than {MAX_RESULT_BYTES:,} bytes")
        return finite(shallow(own(value)))
    except ExpressionFailed as error:
        raise ExpressionFailed(f"{shown(text)} has no value: {error}") from error
    except Failures as error:
        raise ExpressionFailed(f"{shown(text)} has no value: {words(error)}") from error


def words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return storable_text(" ".join(str(error).split())[:300])


def shown(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"


def own(value: Any) -> Any:
    """A copy that the stores can keep."""
    if isinstance(value, str):
        return storable_text(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return small(value)
    if isinstance(value, list):
        return [own(item) for item in value]
    if isinstance(value, dict):
        return {storable_text(name): own(item) for name, item in value.items()}
    raise ExpressionFailed("it gives no JSON")


def holds(value: Any) -> bool:
    """Whether a condition is met, as JMESPath understands truth: 0 is true, what is empty is not."""
    return value not in ("", [], {}, None, False) or (value == 0 and not isinstance(value, bool))

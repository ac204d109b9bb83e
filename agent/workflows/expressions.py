"""Expressions over the values of an execution: JMESPath and a few functions, within bounds of work, size and time.

A text of a step's config may hold expressions between braces: `Hello {{ variables.name }}`; a text that is nothing but
one keeps the type of its value.
"""

import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import jmespath
import orjson
from jmespath.exceptions import JMESPathError, ParseError
from jmespath.functions import Functions, signature
from jmespath.visitor import Options, TreeInterpreter

from services.fields import LARGEST_INTEGER, finite, shallow
from services.postgres import storable_text

MAX_CHARS = 2_000
MAX_STEPS = 20_000
"""Visits of nodes of the expression; 10,000 take about 10 ms."""
MAX_BYTES = 4 * 1024 * 1024
"""Of anything on the way, written out."""
MAX_RESULT_BYTES = 256 * 1024
MAX_MADE_BYTES = 16 * 1024 * 1024
"""Of all that functions and expressions give while one value is worked out: nobody knows what of it is held."""
MAX_SECONDS = 0.5
"""Of this thread's own time: a step over large texts costs more than one."""
MAX_SPLITS = 20_000
WEIGHT_OF_ONE = 50
"""Characters that take as long to read as beginning with an expression."""
OPENING, CLOSING = "{{", "}}"
BRACE = re.compile(r"""'(?:[^'\\]|\\.)*(?:'|\Z)|"(?:[^"\\]|\\.)*(?:"|\Z)|`(?:[^`\\]|\\.)*(?:`|\Z)|[{}]""", re.DOTALL)
"""A brace of an expression, or what is quoted in it."""

# Or a mistyped literal would quietly be a text.
warnings.filterwarnings("error", "deprecated string literal syntax", PendingDeprecationWarning)

Scope = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


class BadExpression(Exception):
    """A text that is no expression; the text says why."""


class ExpressionFailed(Exception):
    """An expression that has no value here; the text says why."""


def takes(*types: str) -> Callable[[F], F]:
    kinds: list[Any] = [{"types": [each]} for each in types]
    return signature(*kinds)


class Library(Functions):
    """JMESPath's own functions, with arithmetic and texts added."""

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


def small(number: float) -> float:
    """Whole numbers are exact as long as they have 64 bits: they cannot grow for ever."""
    return number if isinstance(number, float) or abs(number) < LARGEST_INTEGER else float(number)


LIBRARY = Library()
NAMES = frozenset(LIBRARY.FUNCTION_TABLE)
Failures = (JMESPathError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What JMESPath raises for values that an expression was not made for."""


class Budget:
    """What may be spent on one value, however many expressions it is made of: nothing else happens meanwhile."""

    def __init__(self) -> None:
        self.until = time.thread_time() + MAX_SECONDS
        self.made = 0

    def check_time(self) -> None:
        if time.thread_time() > self.until:
            raise ExpressionFailed(f"it takes longer than {MAX_SECONDS:g} seconds")

    def take(self, size: int) -> None:
        self.made += size
        if self.made > MAX_MADE_BYTES:
            raise ExpressionFailed(f"it makes more than {MAX_MADE_BYTES:,} bytes in all")
        self.check_time()


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


def bounded(size: int) -> None:
    if size > MAX_BYTES:
        raise ExpressionFailed(f"it makes more than {MAX_BYTES:,} bytes on its way")


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
    check(inner)
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


def check_template(value: Any) -> None:
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
        return evaluate(found[0].expression, scope, budget)
    said = (each if isinstance(each, str) else as_text(evaluate(each.expression, scope, budget)) for each in found)
    return "".join(said)


def as_text(value: Any) -> str:
    """A value in a text: null is nothing, and what is no text is JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()

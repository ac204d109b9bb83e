"""Expressions: what they can say, and that none can take long, grow large or reach anything but its scope."""

import time
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given

from agent.workflows import bounds, expressions
from agent.workflows.bounds import ExpressionFailed
from agent.workflows.expressions import BadExpression, evaluate, holds
from tests.agent.workflows.random import expression_texts, json_values

SCOPE = {
    "variables": {"name": "Ann", "count": 3, "tags": ["a", "b"], "none": None},
    "steps": {"fetch": {"output": {"status": 200, "items": [{"n": 1}, {"n": 2}]}}},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("variables.name", "Ann"),
        ("steps.fetch.output.items[?n > `1`].n | [0]", 2),
        ("add(variables.count, `2`)", 5),
        ("divide(`7`, `2`)", 3.5),
        ("join('-', variables.tags)", "a-b"),
        ("{who: upper(variables.name), many: variables.count > `2`}", {"who": "ANN", "many": True}),
        ("replace(variables.name, 'n', 'nn')", "Annnn"),
        ("split('a,b', ',')", ["a", "b"]),
        ("parse_json('{\"a\": [1]}').a[0]", 1),
        ("variables.missing", None),
        ("multiply(`9223372036854775807`, `2`)", 2.0**64),
    ],
)
def test_an_expression_has_the_value_that_its_scope_gives(text: str, value: Any) -> None:
    assert evaluate(text, SCOPE) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("variables.", "got: eof"),
        ("", "empty"),
        ("nope(a)", "there is no function nope"),
        ("length(a, b)", "length\\(\\) takes 1 arguments, not 2"),
        ("__import__('os').system('id')", "there is no function __import__"),
        ("!" * 1999 + "a", "nested too deeply"),
        ("a" * 2001, "at most 2,000 characters"),
        ("`{`", "between backticks must be JSON"),
        ("`[1", "Unclosed"),
    ],
)
def test_a_text_that_is_no_expression_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(BadExpression, match=words):
        expressions.check(text)


@pytest.mark.parametrize(
    "text",
    [
        "add(variables.name, `1`)",
        "variables.count > variables.name",
        "divide(`1`, `0`)",
        "&variables",
        "multiply(`9e300`, `9e300`)",
        "to_number('nan')",
        "parse_json('[')",
        "split('abc', '')",
    ],
)
def test_an_expression_without_a_value_fails_with_a_sentence(text: str) -> None:
    with pytest.raises(ExpressionFailed, match="has no value"):
        evaluate(text, SCOPE)


BOMBS = (
    "|".join(["[@, @]"] * 200),
    "|".join(["[@, @][]"] * 200),
    "|".join(["{a: @, b: @}"] * 120),
    f"({'[@, @]|' * 100}@) == ({'[@, @]|' * 100}@)",
    f"to_string({'[@, @]|' * 200}@)",
    "variables.big|" + "|".join(["join(@, [@, @, @])"] * 50),
    "variables.big|" + "|".join(['replace(@, `"x"`, @)'] * 50),
    "length(split(variables.big, ''))",
    "|".join(["map(&[@, @, @, @], [@, @, @, @])[]"] * 40),
    f"variables.many[?{' && '.join(['contains(variables, @)'] * 50)}]",
    "|".join(["multiply(@, @)"] * 100),
)


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_no_expression_takes_long_or_grows_large(text: str) -> None:
    scope = {"variables": {"big": "x" * 100_000, "many": list(range(20_000))}}
    started = time.thread_time()
    try:
        size = len(orjson.dumps(evaluate(text, scope)))
    except ExpressionFailed:
        size = 0
    assert size <= bounds.MAX_RESULT_BYTES * 2
    assert time.thread_time() - started < 5 * bounds.MAX_SECONDS


@pytest.mark.parametrize(
    ("value", "holding"),
    [
        (0, True),
        (0.0, True),
        ("x", True),
        ([0], True),
        (True, True),
        (False, False),
        (None, False),
        ([], False),
        ({}, False),
        ("", False),
    ],
)
def test_what_is_empty_does_not_hold(value: Any, holding: bool) -> None:
    assert holds(value) is holding


def test_values_share_nothing_with_the_scope() -> None:
    scope = {"variables": {"tags": ["a"]}}
    evaluate("variables.tags", scope).append("b")
    assert scope == {"variables": {"tags": ["a"]}}


@given(expression_texts, json_values)
def test_random_expressions_have_a_value_or_a_sentence(text: str, value: Any) -> None:
    with suppress(BadExpression, ExpressionFailed):
        orjson.dumps(evaluate(text, {"variables": value}))

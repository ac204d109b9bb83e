"""Texts with expressions in them: what becomes of them, and within which bounds."""

import time
import tracemalloc
from typing import Any

import pytest

from agent.workflows import bounds, placeholders
from agent.workflows.bounds import ExpressionFailed
from agent.workflows.expressions import BadExpression
from agent.workflows.placeholders import render
from tests.agent.workflows.test_expressions import SCOPE

LONG = f"length(split(replace(variables.many, 'x', '{'a' * 1000}'), ',')[*].replace(@, 'a', '{'b' * 700}'))"
SLOW = "{{ length(sort(split(variables.big, 'x'))) }}"


@pytest.mark.parametrize(
    ("value", "scope"),
    [
        ("{{ variables.big }}" * 3_000, {"big": "x" * 100_000}),
        ([["{{ variables.big }}"]] * 3_000, {"big": "x" * 100_000}),
        (f"{{{{ {LONG} }}}}", {"many": ",".join("x" * 800)}),
        ({"deep": [SLOW * 1_000]}, {"big": "x" * 19_000}),
    ],
    ids=["text", "texts", "parts", "slow"],
)
def test_a_value_of_many_expressions_has_the_bounds_of_one(value: Any, scope: dict[str, Any]) -> None:
    started = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(ExpressionFailed, match=r"in all|longer than"):
            render(value, {"variables": scope})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 * bounds.MAX_MADE_BYTES
    assert time.thread_time() - started < 5 * bounds.MAX_SECONDS


def test_a_text_that_is_one_expression_keeps_its_type_and_others_become_text() -> None:
    given = {
        "all": "{{ variables.tags }}",
        "text": "Hello {{variables.name}}, {{ variables.count }} of {{ variables.tags }}{{ variables.none }}!",
        "braces": "{{ {a: {b: variables.count}} }}",
        "list": [{"deep": "{{ variables.count }}"}, 7, None],
        "plain": "no { expression } }} here",
    }
    assert render(given, SCOPE) == {
        "all": ["a", "b"],
        "text": 'Hello Ann, 3 of ["a","b"]!',
        "braces": {"a": {"b": 3}},
        "list": [{"deep": 3}, 7, None],
        "plain": "no { expression } }} here",
    }


@pytest.mark.parametrize("text", ["{{ variables", "{{ }}", "a {{ nope( }} b"])
def test_a_text_with_a_bad_expression_is_refused(text: str) -> None:
    with pytest.raises(BadExpression):
        placeholders.check({"deep": [text]})

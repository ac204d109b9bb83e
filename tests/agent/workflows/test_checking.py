"""Definitions: what is wrong is told with the step and the field; what is right has an order."""

import time
from typing import Any

import pytest

from agent.tools.standard import GROUPS
from agent.workflows import checking, placeholders
from agent.workflows.checking import Problem
from agent.workflows.definition import Definition
from agent.workflows.templates import TEMPLATES
from agent.workflows.tool_names import TOOL_NAMES


def step(step_id: str, *next_steps: str, type: str = "TRANSFORM", **fields: Any) -> dict[str, Any]:
    usual = {"TRANSFORM": {"expression": "variables"}}
    config = fields.pop("config", usual.get(type, {}))
    return {"id": step_id, "type": type, "next_steps": list(next_steps), "config": config, **fields}


def definition(*steps: dict[str, Any], entry_point: str | None = "a") -> Definition:
    return Definition.model_validate({"steps": list(steps), "entry_point": entry_point})


def loop(step_id: str, body: str, *next_steps: str) -> dict[str, Any]:
    return step(step_id, *next_steps, type="LOOP", config={"body": body, "over": "variables.list"})


def parallel(step_id: str, branches: list[str], *next_steps: str) -> dict[str, Any]:
    return step(step_id, *next_steps, type="PARALLEL", config={"branches": branches})


@pytest.mark.parametrize(
    ("steps", "place", "words"),
    [
        ([step("a", type="DANCE")], ("steps", 0, "type"), "step a: there is no type DANCE"),
        ([step("a", "x")], ("steps", 0, "next_steps"), "step a: next_steps names x"),
        ([step("a", error_handler="x")], ("steps", 0, "error_handler"), "step a: error_handler names x"),
        ([step("a"), step("b")], ("steps", 1, "id"), "step b: no step leads here"),
        ([step("a"), step("a")], ("steps", 1, "id"), "step a: another step has this id"),
        ([step("a", "b"), step("b", "a")], ("steps", 0, "next_steps"), "a cycle outside of a LOOP: a → b → a"),
        ([step("a", "a")], ("steps", 0, "next_steps"), "a cycle outside of a LOOP: a → a"),
        ([step("a", "b", "b"), step("b")], ("steps", 0, "next_steps"), "step a: next_steps names a step twice"),
        (
            [step("a", config={"expression": "variables."})],
            ("steps", 0, "config", "expression"),
            "step a: config.expression: Value error, bad expression",
        ),
        (
            [step("a", type="WEBHOOK", config={"url": "https://x.example", "body": {"n": "{{ nope() }}"}})],
            ("steps", 0, "config", "body"),
            "there is no function nope()",
        ),
        ([step("a", type="WEBHOOK", config={})], ("steps", 0, "config", "url"), "step a: config.url: Field required"),
        ([step("a", type="TOOL", config={"tool": "rm"})], ("steps", 0, "config", "tool"), "there is no tool rm"),
        ([step("a", type="AGENT")], ("steps", 0, "config", "prompt"), "step a: config.prompt: Field required"),
        ([step("a", type="WAIT")], ("steps", 0, "config"), "needs either seconds or until"),
        (
            [step("a", type="WAIT", config={"seconds": 10**9})],
            ("steps", 0, "config"),
            "seconds must be from 0 to 2592000",
        ),
        (
            [step("a", type="INPUT", config={"variables": [{"name": "n", "type": "integer", "default": "x"}]})],
            ("steps", 0, "config", "variables", 0),
            "the default of n is no integer",
        ),
        (
            [step("a", type="CONDITION", config={"expression": "a"})],
            ("steps", 0, "next_steps"),
            "one or two next_steps",
        ),
        ([loop("a", "x")], ("steps", 0, "config"), "step a: config names x"),
        (
            [loop("a", "b", "c"), step("b", "c"), step("c")],
            ("steps", 1, "next_steps"),
            "c is outside of what is inside of a",
        ),
        (
            [parallel("a", ["b", "c"]), step("b", "d"), step("c", "d"), step("d")],
            ("steps", 1, "next_steps"),
            "d is outside of what is inside of a",
        ),
        ([parallel("a", ["b"]), step("b", "a")], ("steps", 1, "next_steps"), "a is outside of what is inside of a"),
    ],
)
def test_what_is_wrong_is_told_with_step_and_field(
    steps: list[dict[str, Any]], place: tuple[str | int, ...], words: str
) -> None:
    found = checking.problems(definition(*steps))
    assert [each.place for each in found][:1] == [place], found
    assert words in found[0].words


@pytest.mark.parametrize("entry_point", [None, "x"])
def test_a_workflow_without_its_entry_is_refused(entry_point: str | None) -> None:
    (found,) = checking.problems(definition(step("a"), entry_point=entry_point))
    assert found.place == ("entry_point",)


def test_steps_come_after_all_that_lead_to_them_and_the_body_of_a_loop_by_itself() -> None:
    steps = definition(
        step("d"), step("a", "b", "c"), step("b", "d"), loop("c", "x", "d"), step("x", "y"), step("y", "c")
    )
    assert checking.problems(steps) == []
    regions = checking.read(steps).regions
    assert regions["x"].order == ("x", "y")
    assert regions["a"].order[0] == "a"
    assert regions["a"].order[-1] == "d"
    assert set(regions["a"].order) == {"a", "b", "c", "d"}


def test_steps_are_not_nested_without_end() -> None:
    steps = [loop(f"l{n}", f"l{n + 1}") for n in range(7)]
    found = checking.problems(definition(*steps, step("l7"), entry_point="l0"))
    assert found[0] == Problem(("steps", 6, "config"), "step l6: steps are nested more than 5 deep here")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.id)
def test_templates_are_right(template: Any) -> None:
    assert checking.problems(Definition.model_validate(template.definition)) == []


def test_the_tools_that_a_step_may_name_are_there() -> None:
    known = {tool.name: tool for tools in GROUPS.values() for tool in tools}
    assert known.keys() >= TOOL_NAMES
    assert not [name for name in TOOL_NAMES if known[name].terminates]


NESTED = "{{ q%d.[" + "a," * 600 + "{a:{a:{a:{a:{a:{a:{a:{a:{a:{a:@}}}}}}}}}},a] }}"


@pytest.mark.parametrize(
    "config",
    [
        {"url": "http://a/", "body": "".join(NESTED % n for n in range(45))},
        {"url": "http://a/", "body": "".join(f"{{{{ v{n} }}}}" for n in range(4_500))},
    ],
    ids=["long", "many"],
)
def test_a_definition_is_read_in_a_short_time_or_refused(config: dict[str, Any]) -> None:
    """As many as a request can hold would keep the API, and each worker, from everything else for half a minute."""
    steps = [step(f"s{n}", f"s{n + 1}", type="WEBHOOK", config=config) for n in range(15)]
    started = time.thread_time()
    (problem,) = checking.problems(definition(*steps, step("s15"), entry_point="s0"))
    assert problem.place == ("steps",)
    assert "its expressions must have at most" in problem.words
    assert time.thread_time() - started < 5


def test_an_expression_ends_where_its_own_braces_and_texts_do() -> None:
    for text in ("{{{a: {b: c}}}}", "{{ '}}' }}", """{{ "}}'" }}""", '{{ `{"a": "}}"}` }}', "{{ 'it\\'s }}' }}"):
        (only,) = placeholders.parts(text)
        assert isinstance(only, placeholders.Embedded)
        assert only.expression == text[2:-2].strip()

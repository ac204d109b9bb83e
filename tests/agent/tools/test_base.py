from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agent.tools.base import BadArguments, Registry, ToolResult, tool
from agent.tools.standard import STANDARD


class Point(BaseModel):
    x: int
    title: str = ""


@tool(body="text", terminates=True)
async def draw(
    context: Any,
    text: Annotated[str, Field(description="What to write.")],
    points: list[Point] = [],  # noqa: B006 - a default of the schema; never changed
    size: Annotated[int, Field(ge=1, description="In pixels.")] = 3,
    color: Literal["red", "blue"] = "red",
) -> str:
    """Draw
    something."""
    return f"{context} {text} {len(points)} {size} {color}"


def test_the_native_form_follows_from_the_function() -> None:
    function = draw.schema["function"]
    assert (function["name"], function["description"]) == ("draw", "Draw\nsomething.")
    parameters = function["parameters"]
    assert parameters["required"] == ["text"]
    assert parameters["properties"]["size"] == {
        "default": 3, "description": "In pixels.", "minimum": 1, "type": "integer",
    }  # fmt: skip
    assert parameters["$defs"]["Point"]["properties"] == {
        "x": {"type": "integer"},
        "title": {"default": "", "type": "string"},
    }
    assert parameters["additionalProperties"] is False


def test_the_xml_form_follows_from_the_function() -> None:
    assert draw.example.splitlines()[:4] == [
        "<function_calls>",
        '<invoke name="draw">',
        '<parameter name="text">What to write.</parameter>',
        '<parameter name="points">… (optional)</parameter>',
    ]


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ({"text": "hi"}, "ctx hi 0 3 red"),
        ({"text": "[1]", "points": '[{"x": 1}]', "size": "5"}, "ctx [1] 1 5 red"),
        ({"text": "hi", "points": [{"x": "2"}], "color": "blue"}, "ctx hi 1 3 blue"),
    ],
)
async def test_a_call_gets_its_arguments_typed(given: dict[str, Any], result: str) -> None:
    assert await draw.run("ctx", draw.read(given)) == ToolResult(result, terminates=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["text: Field required", "It takes: text, points, size, color."]),
        ({"text": "hi", "size": "large"}, ["size: Input should be a valid integer"]),
        ({"text": "hi", "points": "[{"}, ["points: Input should be a valid list"]),
        ({"text": "hi", "points": [{"y": 1}]}, ["points.0.x: Field required"]),
        ({"text": "hi", "sise": 1}, ["sise: Extra inputs are not permitted"]),
        ({"text": ["hi"]}, ["text: Input should be a valid string"]),
    ],
)
def test_arguments_that_do_not_fit_say_what_to_mend(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadArguments) as refused:
        draw.read(given)
    assert [word for word in words if word not in str(refused.value)] == []


def test_a_registry_knows_a_tool_by_name_and_tag() -> None:
    found = STANDARD.get("web-browser-takeover")
    assert found is not None
    assert found is STANDARD.get("web_browser_takeover")
    assert {"web-browser-takeover", "web_browser_takeover", "ask"} <= STANDARD.tags
    assert Registry().get("ask") is None


def test_every_standard_tool_describes_itself_and_its_parameters() -> None:
    for known in STANDARD:
        assert known.description
        assert [name for name, words in known.arguments.described.items() if words.startswith("…")] == []
        assert known.body in (None, *known.arguments.described)

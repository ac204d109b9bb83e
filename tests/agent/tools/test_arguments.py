from typing import Any

import pytest

from agent.tools.arguments import Described
from agent.tools.base import BadArguments, Tool, ToolResult
from agent.tools.standard import STANDARD
from agent.xml_arguments import arguments_of
from agent.xml_calls import XmlCalls

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "description": "What to say.\nIn full."},
        "times": {"type": "integer"},
        "loud": {"type": "boolean"},
        "ratio": {"type": ["number", "null"]},
        "tags": {"type": "array"},
        "any": {},
    },
    "required": ["text"],
}


async def say(calling: Any, /, **given: Any) -> str:
    return repr(given)


foreign = Tool("mcp_say", "Say something.", say, Described(SCHEMA))


def test_a_tool_with_a_schema_of_somebody_elses_has_both_forms() -> None:
    assert foreign.schema["function"] == {"name": "mcp_say", "description": "Say something.", "parameters": SCHEMA}
    assert foreign.example.splitlines()[2:4] == [
        '<parameter name="text">What to say.</parameter>',
        '<parameter name="times">… (optional)</parameter>',
    ]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"text": "7"}, {"text": "7"}),
        ({"text": "a", "times": "3", "loud": "true"}, {"text": "a", "times": 3, "loud": True}),
        ({"text": "a", "ratio": "0.5", "tags": '["x"]'}, {"text": "a", "ratio": 0.5, "tags": ["x"]}),
        ({"text": "a", "ratio": "null", "any": '{"a": 1}'}, {"text": "a", "ratio": None, "any": {"a": 1}}),
        ({"text": "[1]", "any": "7", "unknown": "x"}, {"text": "[1]", "any": "7", "unknown": "x"}),
        ({"text": "a", "times": 3.0}, {"text": "a", "times": 3.0}),
    ],
)
async def test_texts_become_what_the_schema_asks_for(given: dict[str, Any], read: dict[str, Any]) -> None:
    assert foreign.read(given) == read
    assert await foreign.run(None, read) == ToolResult(repr(read))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "text: Field required"),
        ({"text": 7}, "text: Input should be string"),
        ({"text": "a", "times": "many"}, "times: Input should be integer"),
        ({"text": "a", "times": True}, "times: Input should be integer"),
        ({"text": "a", "tags": "x"}, "tags: Input should be array"),
        ({"text": "a", "ratio": "x"}, "ratio: Input should be number or null"),
    ],
)
def test_arguments_that_do_not_fit_a_strangers_schema_say_what_to_mend(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadArguments) as refused:
        foreign.read(given)
    assert str(refused.value).splitlines()[1:] == [words, "It takes: text, times, loud, ratio, tags, any."]


def test_a_call_by_tag_is_read_with_its_elements() -> None:
    (found,) = XmlCalls(frozenset({"mcp-say"})).feed("<mcp-say><text>hello</text><times>2</times></mcp-say>")
    assert foreign.read(arguments_of(found, foreign)) == {"text": "hello", "times": 2}


def test_schemas_are_made_once() -> None:
    first, again = STANDARD.schemas, STANDARD.schemas
    assert all(a["function"]["parameters"] is b["function"]["parameters"] for a, b in zip(first, again, strict=True))

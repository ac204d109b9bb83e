from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.mcp.schemas import MAX_CHARS, clean

EMPTY: dict[str, Any] = {"type": "object", "properties": {}}


def property_of(said: Any) -> Any:
    return clean({"type": "object", "properties": {"p": said}})["properties"]["p"]


@pytest.mark.parametrize(
    "said", [None, "text", 7, [], {}, {"type": "string"}, {"type": "array"}, {"$ref": "#"}, {"$ref": 7}]
)
def test_what_is_no_object_schema_becomes_an_empty_one(said: Any) -> None:
    assert clean(said) == EMPTY


def test_a_good_schema_stays_as_it_is() -> None:
    good = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "Whose.", "minLength": 1},
            "size": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
            "kind": {"type": "string", "enum": ["a", "b"]},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            "at": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
            "free": {"type": "object", "additionalProperties": {"type": "number"}},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    assert clean(good) == good


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"type": "int"}, {}),
        ({"type": ["string", "null", "none"]}, {"type": ["string", "null"]}),
        ({"type": "array"}, {"type": "array", "items": {}}),
        ({"type": "string", "pattern": "("}, {"type": "string"}),
        ({"type": "string", "enum": []}, {"type": "string"}),
        ({"enum": [1, 1, {}]}, {}),
        ({"const": "x"}, {"enum": ["x"]}),
        ({"minimum": "1", "maxLength": -1, "maximum": True}, {}),
        ({"anyOf": []}, {}),
        ({"description": 5, "title": "T", "$schema": "x"}, {}),
        ("a text", {}),
        (True, {}),
    ],
)
def test_what_providers_would_refuse_is_left_out(said: Any, kept: Any) -> None:
    assert property_of(said) == kept


def test_names_that_providers_refuse_are_left_out_and_not_required() -> None:
    said = {"properties": {"good": {}, "bad name": {}, "": {}}, "required": ["bad name", "good", "good", 3]}
    assert clean(said) == {"type": "object", "properties": {"good": {}}, "required": ["good"]}


def test_a_choice_in_place_of_the_parameters_is_left_out() -> None:
    assert clean({"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": {}}}) == {
        "type": "object",
        "properties": {"a": {}},
    }


def test_references_are_replaced_by_what_they_mean() -> None:
    said = {
        "properties": {"a": {"$ref": "#/$defs/point", "description": "Where."}},
        "$defs": {
            "point": {"type": "object", "properties": {"x": {"$ref": "#/$defs/number"}}},
            "number": {"type": "number"},
        },
    }
    assert clean(said)["properties"]["a"] == {
        "type": "object",
        "description": "Where.",
        "properties": {"x": {"type": "number"}},
    }


@pytest.mark.parametrize("reference", ["#/$defs/nothing", "https://example.org/schema.json", "#/type", "other.json"])
def test_references_that_lead_nowhere_or_out_are_open(reference: str) -> None:
    assert property_of({"$ref": reference}) == {}


def test_a_schema_that_goes_on_for_ever_is_cut() -> None:
    node = {
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/{other}"} for name in "abcdefgh" for other in "n"},
    }
    said = {"properties": {"root": {"$ref": "#/$defs/n"}}, "$defs": {"n": node}}
    assert len(orjson.dumps(clean(said))) < MAX_CHARS


def test_a_schema_that_is_very_deep_or_very_large_is_cut() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"type": "object", "properties": {"p": deep}}
    assert len(orjson.dumps(clean(deep))) < 2_000
    large = {"properties": {f"p{n}": {"type": "string", "description": "x" * 5_000} for n in range(3_000)}}
    cleaned = clean({**large, "required": ["p1"]})
    assert len(orjson.dumps(cleaned)) < MAX_CHARS
    assert cleaned["properties"]["p1"] == {"type": "string"}
    assert cleaned["required"] == ["p1"]


words = st.sampled_from(
    ["type", "properties", "items", "$ref", "required", "anyOf", "enum", "$defs", "object", "#", "#/$defs/a", "a"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=40,
)


@settings(max_examples=60)
@given(values)
def test_whatever_a_server_says_the_schema_is_an_object_that_can_be_sent(said: Any) -> None:
    cleaned = clean(said)
    assert cleaned["type"] == "object"
    assert isinstance(cleaned["properties"], dict)
    assert set(cleaned.get("required", [])) <= set(cleaned["properties"])
    assert orjson.loads(orjson.dumps(cleaned)) == cleaned
    assert "$ref" not in orjson.dumps(cleaned).decode()

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.llm.anthropic_messages import GO_ON, OPENING, body
from agent.llm.request import ModelRequest

CACHED = {"type": "ephemeral"}
LOOK = {"name": "look", "description": "Look at it.", "parameters": {"type": "object", "properties": {"at": {}}}}


def asked(*messages: dict[str, Any], model: str = "claude-opus-4-6", effort: str | None = None) -> dict[str, Any]:
    request = ModelRequest(f"anthropic/{model}", list(messages), effort, ({"type": "function", "function": LOOK},))
    return body(request, model)


def turns(*messages: dict[str, Any], **how: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """The turns as pairs, without the marks for the cache."""
    return [
        (turn["role"], [unmarked(block) for block in turn["content"]]) for turn in asked(*messages, **how)["messages"]
    ]


def unmarked(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "cache_control"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = None, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": arguments}}


def result(call_id: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def tool_use(call_id: str, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "look", "input": given}


def thought(what: str, **position: Any) -> dict[str, Any]:
    return {"type": "thinking", "thinking": what, "signature": "sig", **position}


def test_the_system_prompt_stands_apart_and_tools_have_anthropics_shape() -> None:
    told = asked({"role": "system", "content": "Be brief."}, user("Hi"))
    assert told["system"] == [{**text("Be brief."), "cache_control": CACHED}]
    assert told["tools"] == [{"name": "look", "description": "Look at it.", "input_schema": LOOK["parameters"]}]
    assert told["messages"] == [user([{**text("Hi"), "cache_control": CACHED}])]
    assert (told["model"], told["stream"], told["max_tokens"]) == ("claude-opus-4-6", True, 128_000)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, {"type": "object", "properties": {}}),
        ({"type": "string"}, {"type": "object", "properties": {}}),
        ({"properties": {"a": {}}, "required": ["a"]}, {"type": "object", "properties": {"a": {}}, "required": ["a"]}),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, {"type": "object", "properties": {}}),
    ],
)
def test_a_schema_that_the_api_would_refuse_fails_no_call(given: Any, sent: dict[str, Any]) -> None:
    schema = {"type": "function", "function": {"name": "odd", "parameters": given}}
    told = body(ModelRequest("anthropic/claude-opus-4-6", [user("Hi")], tools=(schema,)), "claude-opus-4-6")
    assert told["tools"] == [{"name": "odd", "input_schema": sent}]


def test_what_the_system_says_later_is_part_of_the_conversation() -> None:
    later = [{"role": "system", "content": "Be brief."}, user("Hi"), {"role": "system", "content": "The disk is full."}]
    assert asked(*later)["system"] == [{**text("Be brief."), "cache_control": CACHED}]
    assert turns(*later) == [("user", [text("Hi"), text("The disk is full.")])]


def test_neighbours_of_one_role_become_one_turn() -> None:
    assert turns(user("a"), user("b"), assistant("c"), assistant("d"), user("e")) == [
        ("user", [text("a"), text("b")]),
        ("assistant", [text("c"), text("d")]),
        ("user", [text("e")]),
    ]


def test_a_conversation_begins_and_ends_with_the_user() -> None:
    assert turns(assistant("I said.")) == [
        ("user", [text(OPENING)]),
        ("assistant", [text("I said.")]),
        ("user", [text(GO_ON)]),
    ]


def test_calls_and_their_results_are_paired_and_results_come_first() -> None:
    said = [user("Look"), assistant("Well.", call("c-1", '{"at":1}'), call("c-2"))]
    answers = [user("Quick!"), result("c-1", "one"), result("c-2", [text("two")])]
    assert turns(*said, *answers)[1:] == [
        ("assistant", [text("Well."), tool_use("c-1", {"at": 1}), tool_use("c-2", {})]),
        (
            "user",
            [
                {"type": "tool_result", "tool_use_id": "c-1", "content": [text("one")]},
                {"type": "tool_result", "tool_use_id": "c-2", "content": [text("two")]},
                text("Quick!"),
            ],
        ),
    ]


def test_an_id_that_the_api_refuses_is_mended_alike_in_call_and_result() -> None:
    [_, (_, [use]), (_, [answer])] = turns(
        user("x"), assistant(None, call("functions.look:0")), result("functions.look:0", "")
    )
    assert use["id"] == answer["tool_use_id"] == "functions_look_0"
    assert "content" not in answer


@pytest.mark.parametrize("written", ['{"a', "[1]", "null", "3"])
def test_arguments_that_are_no_object_are_shown_to_the_model_as_it_wrote_them(written: str) -> None:
    [_, (_, [use]), _] = turns(user("x"), assistant(None, call("c", written)), result("c", "bad arguments"))
    assert use["input"] == {"not_an_object": written}


def test_images_go_as_data_or_by_address() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": url}} for url in ("data:image/png;base64,AAAA", "https://x/y.png")
    ]
    data = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    address = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    assert turns(user([text("See:"), *parts])) == [("user", [text("See:"), data, address])]
    [_, _, (_, [answer])] = turns(user("x"), assistant(None, call("c")), result("c", parts[:1]))
    assert answer["content"] == [data]


def test_empty_and_white_text_is_left_out() -> None:
    assert turns(user("  "), user([text(""), text("Hi")]), assistant("\n"), user("?")) == [
        ("user", [text("Hi"), text("?")])
    ]


def test_the_last_two_turns_of_the_user_are_cached_and_four_marks_are_never_passed() -> None:
    said = [message for n in range(5) for message in (user(f"q{n}"), assistant(f"a{n}"))]
    told = asked({"role": "system", "content": "s"}, *said, user("last"))
    marked = [block["text"] for turn in told["messages"] for block in turn["content"] if "cache_control" in block]
    assert marked == ["q4", "last"]
    assert orjson.dumps(told).count(b"cache_control") == 3


def test_thinking_goes_back_unchanged_where_it_came() -> None:
    blocks = [
        thought("first"),
        {"type": "redacted_thinking", "data": "xx"},
        thought("between", position=[5, 0]),
        thought("after a call", position=[9, 1]),
    ]
    said = assistant("Look.Then", call("c-1"), call("c-2"), thinking_blocks=blocks)
    assert turns(user("x"), said, result("c-1", "1"), result("c-2", "2"), effort="low")[1] == (
        "assistant",
        [
            thought("first"),
            {"type": "redacted_thinking", "data": "xx"},
            text("Look."),
            thought("between"),
            text("Then"),
            tool_use("c-1", {}),
            thought("after a call"),
            tool_use("c-2", {}),
        ],
    )


def test_places_of_thinking_that_make_no_sense_repeat_no_text() -> None:
    blocks = [thought("far", position=[99, 9]), thought("back", position=[1, 0])]
    said = turns(user("x"), assistant("Look.", call("c"), thinking_blocks=blocks), result("c", "1"), effort="low")[1][1]
    assert [block for block in said if block["type"] != "thinking"] == [text("Look."), tool_use("c", {})]


def test_without_thinking_no_thinking_goes_back() -> None:
    said = assistant("Hm", thinking_blocks=[thought("first")])
    assert turns(user("x"), said, user("y"))[1] == ("assistant", [text("Hm")])


def test_a_message_never_ends_with_thinking() -> None:
    alone = assistant(None, thinking_blocks=[thought("lost")])
    late = assistant("Hm", thinking_blocks=[thought("late", position=[2, 0])])
    assert turns(user("x"), alone, user("y"), effort="low") == [("user", [text("x"), text("y")])]
    assert turns(user("x"), late, user("y"), effort="low")[1] == ("assistant", [text("Hm")])


@pytest.mark.parametrize("kept", [None, "text", [None], [{"type": "tool_use"}], [thought("t", position="far")]])
def test_thinking_that_somebody_else_wrote_into_a_message_breaks_nothing(kept: Any) -> None:
    assert turns(user("x"), assistant("Hm", thinking_blocks=kept), user("y"), effort="low")[1][1][-1] == text("Hm")


ADAPTIVE = {"type": "adaptive", "display": "summarized"}
DROPPED = {"block_binding": {"prefix_mismatch_behavior": "drop_block"}}


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        ("claude-haiku-4-5", None, {}),
        ("claude-haiku-4-5-20251001", "medium", {"thinking": {"type": "enabled", "budget_tokens": 12_288}}),
        ("claude-haiku-4-5", "minimal", {"thinking": {"type": "enabled", "budget_tokens": 1_024}}),
        ("claude-3-5-sonnet-latest", "high", {}),
        ("claude-opus-4-8", None, {}),
        ("claude-opus-4-8", "high", {"thinking": ADAPTIVE, "output_config": {"effort": "high"}}),
        ("claude-sonnet-5", None, {"thinking": {"type": "disabled"}}),
        ("claude-sonnet-5", "minimal", {"thinking": ADAPTIVE, "output_config": {"effort": "low"}}),
        ("claude-sonnet-5-5", None, {"thinking": {"type": "between_tools"}}),
        ("claude-sonnet-5-5", "low", {"thinking": {**ADAPTIVE, **DROPPED}, "output_config": {"effort": "low"}}),
        (
            "claude-opus-5-5",
            None,
            {
                "thinking": {"type": "adaptive", "display": "omitted", **DROPPED},
                "output_config": {"effort": "low"},
            },
        ),
        ("claude-of-tomorrow", "low", {"thinking": {**ADAPTIVE, **DROPPED}, "output_config": {"effort": "low"}}),
        ("somebody-elses", None, {}),
        ("somebody-elses", "high", {"thinking": {"type": "enabled", "budget_tokens": 2_000}}),
    ],
)
def test_each_model_is_told_to_think_in_the_way_that_it_takes(
    model: str, effort: str | None, config: dict[str, Any]
) -> None:
    told = asked(user("Hi"), model=model, effort=effort)
    assert {name: told[name] for name in ("thinking", "output_config") if name in told} == config
    assert told["max_tokens"] > told.get("thinking", {}).get("budget_tokens", 0)


def test_a_budget_is_not_given_while_calls_are_answered_that_were_not_thought_about() -> None:
    calls = [user("x"), assistant("Hm", call("c")), result("c", "1")]
    assert "thinking" not in asked(*calls, model="claude-haiku-4-5", effort="low")
    thoughtful = [user("x"), assistant("Hm", call("c"), thinking_blocks=[thought("t")]), result("c", "1")]
    assert asked(*thoughtful, model="claude-haiku-4-5", effort="low")["thinking"]["type"] == "enabled"
    assert asked(*calls, model="claude-opus-4-8", effort="low")["thinking"]["type"] == "adaptive"


CONTENT = st.one_of(st.none(), st.text(max_size=5), st.lists(st.builds(text, st.text(max_size=3)), max_size=3))
MESSAGE = st.one_of(
    st.builds(user, CONTENT),
    st.builds(lambda said: {"role": "system", "content": said}, st.text(max_size=5)),
    st.builds(assistant, CONTENT),
    st.builds(
        lambda at: assistant("abc", call("c"), thinking_blocks=[thought("t", position=at)]), st.lists(st.integers())
    ),
    st.builds(result, st.sampled_from(["c", "d.e"]), CONTENT),
)


@given(
    st.lists(MESSAGE, max_size=12),
    st.sampled_from([None, "low"]),
    st.sampled_from(["claude-opus-5", "claude-haiku-4-5"]),
)
def test_whatever_a_thread_holds_the_turns_alternate_and_no_block_is_empty(
    said: list[dict[str, Any]], effort: str | None, model: str
) -> None:
    told = asked(*said, effort=effort, model=model)
    roles = [turn["role"] for turn in told["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    for turn in told["messages"]:
        assert turn["content"]
        assert turn["content"][-1]["type"] != "thinking"
        assert all(block["text"].strip() for block in turn["content"] if block["type"] == "text")
    assert orjson.dumps(told).count(b"cache_control") <= 4

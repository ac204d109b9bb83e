import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from httpx2 import AsyncClient

from agent import history, prompt, thread_manager
from services import run_messages
from services.messages import Message, NewMessage
from services.postgres import Pool
from services.settings import Settings
from tests.agent.seeds import make_context
from tests.waiting import PATIENT

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def stored(kind: str, content: Any) -> Message:
    now = datetime.now(UTC)
    return Message(uuid4(), 1, uuid4(), None, kind, True, content, {}, None, None, now, now)


@pytest.mark.parametrize(
    ("kind", "content", "shown"),
    [
        ("user", {"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}),
        ("user", '{"role": "user", "content": "hi"}', {"role": "user", "content": "hi"}),
        ("user", "hi", {"role": "user", "content": "hi"}),
        ("user", {"content": "hi"}, {"role": "user", "content": "hi"}),
        ("user", '{"my": "own json"}', {"role": "user", "content": '{"my": "own json"}'}),
        ("user", "{not json", {"role": "user", "content": "{not json"}),
        ("user", {"content": [{"type": "text", "text": "a"}, IMAGE, {"type": "hologram"}, 7]},
         {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}),
        ("assistant", {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
         {"role": "assistant", "content": "yes"}),
        ("assistant", {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         {"role": "assistant", "content": "ab"}),
    ],
)  # fmt: skip
def test_every_known_shape_of_a_message_is_shown_to_the_model(kind: str, content: Any, shown: dict[str, Any]) -> None:
    assert thread_manager.model_message(stored(kind, content)) == shown


@pytest.mark.parametrize("text", ["", "Let me look."])
def test_signed_thinking_goes_back_with_the_calls_that_it_led_to(text: str) -> None:
    block = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "look", "arguments": "{}"}}
    answer = {"role": "assistant", "content": text, "thinking_blocks": [block], "tool_calls": [call]}
    _, said, result = thread_manager.to_model([stored("assistant", answer)], "Be good.")
    assert (said["content"], said["thinking_blocks"]) == (text, [block])
    assert [made["id"] for made in said["tool_calls"]] == [result["tool_call_id"]] == ["c"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("user", None),
        ("user", 7),
        ("user", []),
        ("user", {}),
        ("user", ""),
        ("user", "  \n"),
        ("user", {"role": "user"}),
        ("user", {"role": ["user"], "content": "hi"}),
        ("user", {"role": "wizard", "content": "hi"}),
        ("user", {"role": "user", "content": {"deep": 1}}),
        ("user", {"role": "user", "content": [{"type": ["text"]}, {"type": "text", "text": None}]}),
        ("assistant", {"role": "assistant", "content": ""}),
        ("assistant", {"role": "assistant", "content": [IMAGE]}),
        ("tool", {"role": "tool", "content": "result"}),
        ("browser_state", {"content": "…"}),
    ],
)
def test_an_unknown_shape_is_left_out_and_breaks_nothing(kind: str, content: Any) -> None:
    history = [stored("user", "before"), stored(kind, content), stored("user", "after")]
    shown = thread_manager.to_model(history, "prompt")
    assert [said["content"] for said in shown] == ["prompt", "before", "after"]


def call(call_id: str, arguments: str = "{}", name: str = "look") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(*calls: dict[str, Any], text: str = "") -> Message:
    return stored("assistant", {"role": "assistant", "content": text, "tool_calls": list(calls)})


def result(of: Message | None, call_id: str, text: str) -> Message:
    row = stored("tool", {"role": "tool", "tool_call_id": call_id, "content": text})
    return replace(row, metadata={"assistant_message_id": str(of.message_id), "tool_call_id": call_id} if of else {})


def shown_of(*history: Message) -> list[dict[str, Any]]:
    return thread_manager.to_model(history, "prompt")[1:]


def test_a_result_follows_its_call_wherever_it_is_stored() -> None:
    first, second = answer(call("a"), call("b")), answer(call("c"), text="and")
    said = shown_of(first, second, result(second, "c", "3"), result(first, "b", "2"), result(first, "a", "1"))
    assert [one["role"] for one in said] == ["assistant", "tool", "tool", "assistant", "tool"]
    assert [one["content"] for one in said] == ["", "1", "2", "and", "3"]


def test_ids_that_a_provider_uses_again_are_told_apart() -> None:
    first, second = answer(call("call_0")), answer(call("call_0"))
    said = shown_of(first, second, result(second, "call_0", "2"), result(first, "call_0", "1"))
    assert [one["content"] for one in said] == ["", "1", "", "2"]


def test_results_that_somebody_else_stored_are_found_by_their_id() -> None:
    first, second = answer(call("x")), answer(call("x"))
    said = shown_of(first, result(None, "x", "1"), second, result(None, "x", "2"))
    assert [one["content"] for one in said] == ["", "1", "", "2"]


def test_a_call_without_a_result_is_given_one_and_a_result_without_a_call_is_left_out() -> None:
    said = shown_of(stored("user", "hi"), answer(call("a"), call("b")), result(None, "b", "2"), result(None, "z", "9"))
    assert [one["content"] for one in said] == ["hi", "", thread_manager.NO_RESULT, "2"]
    assert [one["tool_call_id"] for one in said[2:]] == ["a", "b"]


def test_an_xml_call_without_a_result_is_told_of() -> None:
    written = {"id": "a", "index": 0, "function_name": "look", "xml_tag_name": "look", "arguments": {}}
    plain = stored("assistant", {"role": "assistant", "content": "<look/>"})
    row = replace(plain, metadata={"xml_tool_calls": [written]})
    assert [one["content"] for one in shown_of(row)] == ["<look/>", f"look: {thread_manager.NO_RESULT}"]


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (call("a", '{"x": 1}'), ("look", '{"x":1}')),
        (call("a", '{"x": '), ("look", "{}")),
        (call("a", "[1]"), ("look", "{}")),
        (call("a", ""), ("look", "{}")),
        (call("a", name="functions.look it"), ("functions_look_it", "{}")),
        (call("a", name="n" * 100), ("n" * 64, "{}")),
    ],
)
def test_a_call_is_shown_as_its_provider_would_take_it(made: dict[str, Any], shown: tuple[str, str]) -> None:
    function = shown_of(answer(made))[0]["tool_calls"][0]["function"]
    assert (function["name"], function["arguments"]) == shown


@pytest.mark.parametrize("calls", [None, "calls", {}, [], [None, 7, {}, {"id": 3}, {"id": "a", "function": "look"}]])
def test_calls_of_an_unknown_shape_are_left_out(calls: Any) -> None:
    row = stored("assistant", {"role": "assistant", "content": "hi", "tool_calls": calls})
    assert shown_of(row) == [{"role": "assistant", "content": "hi"}]


async def test_the_system_prompt_says_what_day_it_is(pool: Pool, http: AsyncClient, settings: Settings) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    assert "2031-02-03" in prompt.compose(ctx, date(2031, 2, 3))


async def test_a_message_whose_commit_was_not_heard_of_is_not_stored_twice(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    first = await thread_manager.store(ctx, NewMessage("assistant", {"role": "assistant", "content": "a"}))
    again = await thread_manager.store(ctx, NewMessage("assistant", {"role": "assistant", "content": "a"}))
    assert again == first
    assert len((await history.load(ctx)).conversation) == 2


async def test_storing_waits_until_postgres_is_back(
    pool: Pool, http: AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_manager, "RETRY_SECONDS", 0.01)
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    add, failures = run_messages.add, [ConnectionRefusedError(), asyncpg.CannotConnectNowError("starting up")]

    async def sometimes(*args: Any, **kwargs: Any) -> list[Message]:
        if failures:
            raise failures.pop()
        return await add(*args, **kwargs)

    monkeypatch.setattr(run_messages, "add", sometimes)
    async with asyncio.timeout(PATIENT):
        assert await thread_manager.store(ctx, NewMessage("assistant", "a"))
    assert not failures


async def test_a_closed_pool_is_not_waited_for(http: AsyncClient, pool: Pool, settings: Settings) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError):
        await history.load(ctx)

"""What is asked of the scripted Anthropic server and what comes back; its failures are in test_routing."""

from contextlib import aclosing
from typing import Any

import pytest
from httpx2 import AsyncClient

from agent.context import RunFailed
from agent.llm import errors, routing
from agent.llm.anthropic_dialect import messages_url
from agent.llm.chunk import Chunk, ToolCallPart, Usage
from agent.llm.request import ModelRequest
from services.http import open_client
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import model_settings
from tests.anthropic_wire import SIGNATURE
from tests.fakes import FakeModel, Reply

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Well?"}]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


async def stream(settings: Settings, http: AsyncClient, request: ModelRequest | None = None) -> list[Chunk]:
    asked = request or ModelRequest("anthropic/claude-opus-4-8", QUESTION)
    async with aclosing(routing.stream(settings, http, asked)) as answer:
        return [chunk async for chunk in answer]


async def test_text_usage_and_finish_reason_arrive(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "cache_read_input_tokens": 90,
        "cache_creation_input_tokens": 3,
    }
    fake.script(Reply(fakes.contents(fakes.WORDS), finish_reason="length", usage=usage))
    chunks = await stream(settings, http)
    assert "".join(chunk.text for chunk in chunks) == "".join(fakes.WORDS)
    assert chunks[-1] == Chunk(finish_reason="length", usage=Usage(98, 7, 105, cached_tokens=90, cache_write_tokens=3))
    [asked] = fake.requests
    assert asked.path == "/v1/messages"
    assert asked.headers["x-api-key"] == "sk-ant-test"
    assert asked.headers["anthropic-version"] == "2026-10-21"
    assert "anthropic-beta" not in asked.headers
    cached = {"cache_control": {"type": "ephemeral"}}
    assert asked.body == {
        "model": "claude-opus-4-8",
        "max_tokens": 128_000,
        "stream": True,
        "system": [{"type": "text", "text": "Be brief.", **cached}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Well?", **cached}]}],
    }


async def test_thinking_arrives_as_text_and_as_a_signed_block(
    fake: FakeModel, settings: Settings, http: AsyncClient
) -> None:
    fake.script(fakes.thinks("Let me ", "see.", then=["So."]))
    chunks = await stream(settings, http, ModelRequest("anthropic/claude-opus-5-5", QUESTION, "high"))
    assert [chunk.reasoning for chunk in chunks if chunk.reasoning] == ["Let me ", "see."]
    kept = {"type": "thinking", "thinking": "Let me see.", "signature": SIGNATURE}
    assert [chunk.thinking_blocks for chunk in chunks if chunk.thinking_blocks] == [(kept,)]
    [asked] = fake.requests
    assert asked.headers["anthropic-beta"] == "thinking-binding-controls-2026-08-01"
    assert asked.body["output_config"] == {"effort": "high"}


async def test_a_call_of_a_tool_arrives_in_fragments(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    deltas = [*fakes.contents(["I look."]), *fakes.calls("look", '{"at', '": 1}'), *fakes.calls("look", index=1)]
    fake.script(Reply(deltas, finish_reason="tool_calls"))
    chunks = await stream(settings, http, ModelRequest("anthropic/claude-opus-4-8", QUESTION, tools=(LOOK,)))
    assert [part for chunk in chunks for part in chunk.tool_calls] == [
        ToolCallPart(0, "call_1", "look"),
        ToolCallPart(0, arguments='{"at'),
        ToolCallPart(0, arguments='": 1}'),
        ToolCallPart(1, "call_1", "look"),
        ToolCallPart(1, arguments="{}"),
    ]
    assert chunks[-1].finish_reason == "tool_calls"
    assert [tool["name"] for tool in fake.requests[0].body["tools"]] == ["look"]


@pytest.mark.slow
async def test_pings_are_signs_of_life(fake: FakeModel) -> None:
    ping: dict[str, Any] = {"event": {"type": "ping"}}
    fake.script(Reply([*[ping] * 32, {"content": "Done."}], delay=0.25))
    patient = model_settings(fake, idle_timeout="6s")
    async with open_client(patient) as http:
        assert [chunk.text for chunk in await stream(patient, http) if chunk.text] == ["Done."]


@pytest.mark.parametrize("raw", [b": hi\n\n", b"data: [DONE]\n\n", b"data: 3\n\n", b"\xff\xfe\n\n"])
async def test_a_stream_of_something_else_is_a_sentence_and_no_answer(
    fake: FakeModel, settings: Settings, http: AsyncClient, raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "FIRST_WAIT", 0.01)
    fake.script(*[Reply(raw=raw)] * 3)
    with pytest.raises(RunFailed, match=r"^Anthropic (sent an answer that cannot be read|ended the answer)"):
        await stream(settings, http)


async def test_an_answer_that_is_no_stream_is_a_wrong_base_url(
    fake: FakeModel, settings: Settings, http: AsyncClient
) -> None:
    fake.script(Reply(raw=b"<html>Welcome</html>", content_type="text/html"))
    with pytest.raises(RunFailed, match=r"^Anthropic sent an answer that cannot be read; is ANTHROPIC_BASE_URL right"):
        await stream(settings, http)


@pytest.mark.parametrize("given", ["https://proxy.example", "https://proxy.example/", "https://proxy.example/v1/"])
def test_the_base_url_is_taken_with_and_without_its_version(given: str) -> None:
    assert messages_url(given) == "https://proxy.example/v1/messages"

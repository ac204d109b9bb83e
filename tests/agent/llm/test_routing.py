import asyncio
import socket
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from httpx2 import AsyncClient

from agent.context import RunFailed
from agent.llm import errors, routing
from agent.llm.chunk import Chunk, ToolCallPart, Usage
from agent.llm.request import ModelRequest
from services.http import open_client
from services.settings import DeploymentSettings, ModelSettings, Settings
from tests import fakes
from tests.agent.seeds import eventually, model_settings
from tests.fakes import FakeModel, Reply
from tests.waiting import PATIENT

QUESTION = [{"role": "user", "content": "Well?"}]
WHOLE = "".join(fakes.WORDS)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "FIRST_WAIT", 0.01)


OPENAI, ANTHROPIC = "openai/m", "anthropic/m"


@pytest.fixture(params=[OPENAI, ANTHROPIC])
def model(request: pytest.FixtureRequest) -> str:
    """A model in each dialect: what is promised of failures holds in both."""
    return str(request.param)


def said_of(model: str, sentence: str) -> str:
    """A sentence about OpenAI's model, about this one."""
    if model == OPENAI:
        return sentence
    return sentence.replace(OPENAI, model).replace("OpenAI", "Anthropic").replace("OPENAI_", "ANTHROPIC_")


async def stream(
    settings: Settings, http: AsyncClient, model: str = OPENAI, seen: list[Chunk] | None = None
) -> list[Chunk]:
    chunks = [] if seen is None else seen
    async with aclosing(routing.stream(settings, http, ModelRequest(model, QUESTION))) as answer:
        async for chunk in answer:
            chunks.append(chunk)
    return chunks


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def test_text_usage_and_finish_reason_arrive(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    fake.script(fakes.says(finish_reason="length"))
    chunks = await stream(settings, http, "openai/some-model")
    assert text(chunks) == WHOLE
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(11, 7, 18)]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
    [asked] = fake.requests
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer sk-test"
    assert asked.body == {
        "model": "some-model",
        "messages": QUESTION,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_is_read_under_both_its_names(
    fake: FakeModel, settings: Settings, http: AsyncClient, name: str
) -> None:
    fake.script(fakes.thinks("Let me ", "see.", name=name))
    chunks = await stream(settings, http)
    assert "".join(chunk.reasoning for chunk in chunks) == "Let me see."
    assert text(chunks) == WHOLE


async def test_tool_call_fragments_are_kept(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    call = {"index": 1, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a'}}
    fake.script(Reply([{"tool_calls": [call]}], finish_reason="tool_calls"))
    chunks = await stream(settings, http)
    assert chunks[0].tool_calls == (ToolCallPart(1, "call_1", "look", '{"a'),)


async def test_text_that_no_store_takes_is_mended(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    fake.script(fakes.says("nul\x00", "half \ud83d"))
    assert text(await stream(settings, http)) == "nulhalf ?"


async def test_every_prefix_reaches_its_own_base_url_with_its_own_key(fake: FakeModel, http: AsyncClient) -> None:
    for prefix in ("openrouter", "groq", "ollama", "vllm"):
        there = model_settings(fake, **{f"{prefix}_base_url": fake.base_url, f"{prefix}_api_key": "k-1"})
        fake.script(fakes.says())
        assert text(await stream(there, http, f"{prefix}/maker/model")) == WHOLE
        assert fake.requests[-1].headers["authorization"] == "Bearer k-1"
        assert fake.requests[-1].model == "maker/model"


async def test_reasoning_effort_is_sent_only_when_it_is_given_and_taken(
    fake: FakeModel, settings: Settings, http: AsyncClient
) -> None:
    for name in ("openai/m", "openai/gpt-4o"):
        fake.script(fakes.says())
        async with aclosing(routing.stream(settings, http, ModelRequest(name, QUESTION, "high"))) as answer:
            assert [chunk async for chunk in answer]
    assert [asked.body.get("reasoning_effort") for asked in fake.requests] == ["high", None]


async def test_tools_are_sent_and_what_only_anthropic_signed_is_not(
    fake: FakeModel, settings: Settings, http: AsyncClient
) -> None:
    fake.script(fakes.says())
    look = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    said = {"role": "assistant", "content": "Hm.", "thinking_blocks": [{"type": "thinking"}]}
    request = ModelRequest("openai/m", [said, *QUESTION], tools=(look,))
    async with aclosing(routing.stream(settings, http, request)) as answer:
        assert [chunk async for chunk in answer]
    assert fake.requests[0].body["tools"] == [look]
    assert fake.requests[0].body["messages"] == [{"role": "assistant", "content": "Hm."}, *QUESTION]


async def test_the_details_of_usage_are_read(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 8}, "completion_tokens_details": {"reasoning_tokens": 2}}
    fake.script(Reply(fakes.contents(["Hi"]), usage={**fakes.USAGE, **details}))
    [usage] = [chunk.usage for chunk in await stream(settings, http) if chunk.usage]
    assert usage == Usage(11, 7, 18, cached_tokens=8, reasoning_tokens=2)
    assert usage.counted() == {**fakes.USAGE, "cached_tokens": 8, "reasoning_tokens": 2}


async def test_a_rate_limit_is_waited_out_for_as_long_as_the_provider_says(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str
) -> None:
    fake.script(fakes.rate_limited("0.3"), fakes.says())
    assert text(await stream(settings, http, model)) == WHOLE
    first, second = fake.requests
    assert 0.3 <= second.at - first.at < PATIENT


@pytest.mark.parametrize(
    "failure",
    [fakes.broken(), fakes.broken(503), fakes.cut(after=0), fakes.truncated(after=0), fakes.fails_inside(after=0)],
    ids=["500", "503", "cut", "truncated", "error event"],
)
async def test_a_failure_before_the_first_word_is_tried_again(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str, failure: Reply
) -> None:
    fake.script(failure, failure, fakes.says())
    assert text(await stream(settings, http, model)) == WHOLE
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    ("failure", "sentence", "requests"),
    [
        (fakes.wrong_key(), "OpenAI refused the API key; check OPENAI_API_KEY.", 1),
        (fakes.out_of_quota(), "The OpenAI account behind OPENAI_API_KEY is out of quota", 1),
        (fakes.rate_limited("3600"), "OpenAI is limiting the rate of requests; try again in 3600 seconds.", 1),
        (fakes.rate_limited("0"), "OpenAI is limiting the rate of requests; try again later.", 3),
        (fakes.broken(), "OpenAI had an internal error (HTTP 500); try again later.", 3),
        (fakes.refuses(402, "Pay"), "is out of quota", 1),
        (fakes.refuses(403, "Not for you"), "The key in OPENAI_API_KEY may not use openai/m: Not for you.", 1),
        (fakes.refuses(404, "No such model"), "OpenAI does not know the model openai/m.", 1),
        (fakes.refuses(400, "Too\nlong " + "x" * 999), "OpenAI refused the request (HTTP 400): Too long xxx", 1),
        (fakes.garbage(), "OpenAI sent an answer that cannot be read; is OPENAI_BASE_URL right?", 1),
        (fakes.cut(after=0), "The connection to OpenAI broke off before the answer was complete.", 3),
    ],
)
async def test_a_call_that_fails_for_good_says_why_in_a_sentence(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str, failure: Reply, sentence: str, requests: int
) -> None:
    fake.script(*[failure] * requests)
    with pytest.raises(RunFailed) as failed:
        await stream(settings, http, model)
    assert said_of(model, sentence) in str(failed.value)
    assert "kept" not in str(failed.value)
    assert "sk-" not in str(failed.value)
    assert len(str(failed.value)) < 400
    assert len(fake.requests) == requests


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (fakes.cut(after=3), "The connection to OpenAI broke off before the answer was complete."),
        (fakes.truncated(after=3), "OpenAI ended the answer of openai/m before it was complete."),
        (fakes.fails_inside(after=3), "OpenAI reported an error while openai/m was answering: upstream overloaded."),
    ],
    ids=["cut", "truncated", "error event"],
)
async def test_a_failure_in_mid_text_is_never_tried_again(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str, failure: Reply, sentence: str
) -> None:
    fake.script(failure)
    seen: list[Chunk] = []
    with pytest.raises(RunFailed) as failed:
        await stream(settings, http, model, seen)
    assert str(failed.value) == f"{said_of(model, sentence)} The text so far was kept."
    assert text(seen) == "Hello, this "
    assert len(fake.requests) == 1


@pytest.mark.parametrize("reply", [fakes.silent(), fakes.hangs(after=0), fakes.hangs(after=3)])
async def test_a_model_that_says_nothing_more_is_asked_once_and_no_longer_waited_for(
    fake: FakeModel, model: str, reply: Reply
) -> None:
    impatient, seen = model_settings(fake, idle_timeout="1s"), list[Chunk]()
    fake.script(reply)
    async with open_client(impatient) as http:
        with pytest.raises(RunFailed) as failed:
            await stream(impatient, http, model, seen)
    kept = " The text so far was kept." if reply.deltas else ""
    assert str(failed.value) == said_of(model, f"openai/m sent nothing for 1 second.{kept}")
    assert text(seen) == ("Hello, this " if reply.deltas else "")
    assert len(fake.requests) == 1


async def test_an_answer_that_breaks_off_after_its_finish_reason_is_whole(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str
) -> None:
    fake.script(Reply([{"content": "All."}], ending="finish_and_cut"))
    assert text(await stream(settings, http, model)) == "All."


async def test_an_overloaded_anthropic_is_asked_again(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    overloaded = fakes.refuses(529, "Overloaded")
    fake.script(overloaded, fakes.fails_inside(after=0, message="Overloaded", code=529), fakes.says())
    assert text(await stream(settings, http, ANTHROPIC)) == WHOLE
    fake.script(overloaded, overloaded, overloaded)
    with pytest.raises(RunFailed, match=r"^Anthropic had an internal error \(HTTP 529\); try again later"):
        await stream(settings, http, ANTHROPIC)


async def test_thinking_of_an_answer_that_broke_off_unsaid_is_not_added_to_the_next(
    fake: FakeModel, settings: Settings, http: AsyncClient
) -> None:
    block = {"type": "redacted_thinking", "data": "eHg="}
    omitted = {"event": {"type": "content_block_start", "index": 0, "content_block": block}}
    over = {"event": {"type": "content_block_stop", "index": 0}}
    fake.script(Reply([omitted, over], ending="cut"), Reply([omitted, over, {"content": "So."}]))
    chunks = await stream(settings, http, "anthropic/claude-opus-5-5")
    assert [chunk.thinking_blocks for chunk in chunks if chunk.thinking_blocks] == [(block,)]
    assert len(fake.requests) == 2


async def test_an_error_in_the_stream_that_asking_again_cannot_mend_is_told_at_once(
    fake: FakeModel, settings: Settings, http: AsyncClient
) -> None:
    fake.script(fakes.fails_inside(after=0, message="Too long", code=400))
    with pytest.raises(RunFailed, match=r"^Anthropic reported an error while anthropic/m was answering: Too long\.$"):
        await stream(settings, http, ANTHROPIC)


async def test_a_provider_that_refuses_connections_is_named_with_its_address(http: AsyncClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    given = ModelSettings(vllm_base_url=url, anthropic_base_url=url, anthropic_api_key="k", max_retries=1)
    for title, name in (("vLLM", "vllm"), ("Anthropic", "anthropic")):
        with pytest.raises(RunFailed, match=rf"^{title} cannot be reached at {url} \({name.upper()}_BASE_URL\)"):
            await stream(Settings(models=given), http, f"{name}/m")


@pytest.mark.parametrize(
    ("changed", "model", "sentence"),
    [
        ({"openai_api_key": " "}, "openai/m", "openai/m needs a key: set OPENAI_API_KEY."),
        ({"openrouter_api_key": ""}, "openrouter/m", "openrouter/m needs a key: set OPENROUTER_API_KEY."),
        ({"anthropic_api_key": ""}, "anthropic/m", "anthropic/m needs a key: set ANTHROPIC_API_KEY."),
        ({"anthropic_api_key": "sk-ключ"}, "anthropic/m", "ANTHROPIC_API_KEY holds characters that no API key has"),
        ({"anthropic_base_url": "no url"}, "anthropic/m", "Anthropic cannot be reached at no url (ANTHROPIC_BASE_URL)"),
        ({"openai_api_key": "sk-ключ"}, "openai/m", "OPENAI_API_KEY holds characters that no API key has"),
        ({"openai_base_url": "not a url"}, "openai/m", "OpenAI cannot be reached at not a url (OPENAI_BASE_URL)."),
        ({}, "nobody/m", "names no known provider"),
    ],
)
async def test_a_wrong_setting_is_named(
    fake: FakeModel, http: AsyncClient, changed: dict[str, Any], model: str, sentence: str
) -> None:
    with pytest.raises(RunFailed) as failed:
        await stream(model_settings(fake, **changed), http, model)
    assert sentence in str(failed.value)
    assert fake.requests == []


async def test_production_refuses_a_demo_run_that_was_queued_earlier(settings: Settings, http: AsyncClient) -> None:
    production = settings.model_copy(update={"deployment": DeploymentSettings(environment="production")})
    with pytest.raises(RunFailed, match="production"):
        await stream(production, http, "demo/echo")


@pytest.mark.parametrize(
    "reply", [fakes.silent(), fakes.hangs(after=0), fakes.hangs(after=2), fakes.says(*"abc" * 9999, delay=0.01)]
)
async def test_a_cancelled_call_hangs_up_on_the_provider_at_once(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str, reply: Reply
) -> None:
    fake.script(reply)
    calling = asyncio.create_task(stream(settings, http, model))
    await eventually(lambda: bool(fake.requests) and fake.requests[0].chunks_sent >= min(len(list(reply.deltas)), 2))
    asked_to_stop = time.monotonic()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    [asked] = fake.requests
    await asked.until_over()
    assert asked.hung_up_at
    assert asked.hung_up_at - asked_to_stop < 1


async def test_a_caller_that_stops_reading_hangs_up_too(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str
) -> None:
    fake.script(fakes.says(*"abc" * 9999, delay=0.01))
    async with aclosing(routing.stream(settings, http, ModelRequest(model, QUESTION))) as answer:
        await anext(answer)
    await fake.requests[0].until_over()
    assert fake.requests[0].hung_up_at


async def test_whole_answers_share_one_connection(
    fake: FakeModel, settings: Settings, http: AsyncClient, model: str
) -> None:
    for _ in range(3):
        fake.script(fakes.says())
        await stream(settings, http, model)
    assert len({asked.connection for asked in fake.requests}) == 1


def test_words_of_a_provider_are_one_sentence_even_when_there_are_none() -> None:
    assert errors.quote("Not\n so") == "Not so."
    assert errors.quote(" \n") == "no reason was given."


def test_a_retry_after_date_is_understood() -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    assert 3500 < (errors.seconds_from(format_datetime(moment, usegmt=True)) or 0) <= 3600
    assert errors.seconds_from(format_datetime(moment - timedelta(hours=2), usegmt=True)) == 0
    assert errors.seconds_from("2.5") == 2.5
    for nonsense in ("", "soon", "-3", "nan", "Infinity"):
        assert errors.seconds_from(nonsense) is None

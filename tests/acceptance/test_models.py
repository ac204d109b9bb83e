"""The model's wire through the whole system: whatever the provider does, run, row and readers agree on how it ended."""

import time
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.acceptance.client import Client, Event, Started, check_whole_log, streamed_text
from tests.acceptance.conftest import Share
from tests.fakes import USAGE, WORDS, FakeModel, Reply, broken, cut, fails_inside, hangs, rate_limited, truncated
from tests.waiting import PATIENT

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")


async def end_of(client: Client, started: Started) -> tuple[list[Event], dict[str, object]]:
    events = await client.read(started.run_id)
    run = await client.get(started.run_id)
    check_whole_log(events, str(run["status"]))
    return events, run


async def test_text_and_usage_reach_the_readers_the_thread_and_the_run(client: Client) -> None:
    started = await client.initiate("openai/script-text", "What is this?")
    events, run = await end_of(client, started)
    assert run["status"] == "completed"
    assert run["error"] is None
    assert run["usage"] == USAGE
    assert streamed_text(events) == "".join(WORDS)
    question, answer = await client.messages(started.thread_id)
    assert question["content"]["content"] == "What is this?"
    assert answer["content"]["content"] == "".join(WORDS)
    assert [event.said["message_id"] for event in events if event.stream_status == "complete"] == [answer["message_id"]]
    assert [event.content["finish_reason"] for event in events if event.status_type == "finish"] == ["stop"]


async def test_a_rate_limit_is_waited_out_as_the_provider_asks(client: Client, fake: FakeModel) -> None:
    asked_before = len(fake.requests)
    began = time.monotonic()
    events, run = await end_of(client, await client.initiate("openai/script-429", "Limited?"))
    assert run["status"] == "completed"
    assert streamed_text(events) == "".join(WORDS)
    assert time.monotonic() - began >= 1.0
    first, second = fake.requests[asked_before:]
    assert 1.0 <= second.at - first.at < PATIENT


async def test_a_passing_server_error_is_not_noticed(client: Client) -> None:
    events, run = await end_of(client, await client.initiate("openai/script-500-once", "Once?"))
    assert run["status"] == "completed"
    assert streamed_text(events) == "".join(WORDS)


SENTENCES = {
    "script-401": "OpenAI refused the API key; check OPENAI_API_KEY.",
    "script-quota": "out of quota",
    "script-500": "OpenAI had an internal error (HTTP 500)",
    "script-cut": "The connection to OpenAI broke off before the answer was complete.",
    "script-unknown": "OpenAI does not know the model",
    "script-empty": "ended without an answer",
}
SILENT = "sent nothing for 1 second"


@pytest.mark.parametrize("model", SENTENCES)
async def test_a_failure_is_told_in_row_and_stream_in_the_same_sentence(client: Client, model: str) -> None:
    await check_failure(client, f"openai/{model}", SENTENCES[model])


async def check_failure(client: Client, model: str, sentence: str) -> None:
    started = await client.initiate(model)
    events, run = await end_of(client, started)
    assert run["status"] == "failed"
    assert run["completedAt"]
    assert sentence in str(run["error"])
    assert events[-1].said == {"type": "status", "status": "failed", "message": run["error"]}
    assert "Traceback" not in str(run["error"])
    await check_text_kept(client, started, events)


@pytest.mark.parametrize("model", ["script-401", "script-cut", "script-unknown"])
async def test_anthropics_failures_are_told_in_the_same_sentences(client: Client, model: str) -> None:
    sentence = SENTENCES[model].replace("OpenAI", "Anthropic").replace("OPENAI", "ANTHROPIC")
    await check_failure(client, f"anthropic/{model}", sentence)


async def test_anthropic_answers_and_is_asked_again_when_it_limits_the_rate(client: Client) -> None:
    events, run = await end_of(client, await client.initiate("anthropic/script-429", "Limited?"))
    assert run["status"] == "completed"
    assert streamed_text(events) == "".join(WORDS)
    assert run["usage"] == {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@pytest.mark.parametrize("reply", [cut(after=4), truncated(after=4), fails_inside(after=4)])
async def test_text_that_was_streamed_before_a_failure_is_kept(client: Client, fake: FakeModel, reply: Reply) -> None:
    await check_kept(client, fake, reply)


async def check_kept(client: Client, fake: FakeModel, reply: Reply) -> None:
    fake.script(reply)
    started = await client.initiate("openai/script-text")
    events, run = await end_of(client, started)
    assert run["status"] == "failed"
    assert streamed_text(events) == "".join(WORDS[:4])
    assert "The text so far was kept." in str(run["error"])
    await check_text_kept(client, started, events)


async def test_a_provider_that_stays_broken_or_limited_fails_the_run(client: Client, fake: FakeModel) -> None:
    for reply, sentence in ((broken(503), "HTTP 503"), (rate_limited("0"), "limiting the rate of requests")):
        fake.script(*[reply] * 4)
        _, run = await end_of(client, await client.initiate("openai/script-text"))
        assert run["status"] == "failed"
        assert sentence in str(run["error"])
        assert not fake.replies


@pytest.fixture
async def impatient(share: Share) -> AsyncIterator[Client]:
    """Of a system that waits for a second: in the other tests nobody's second is to be too long."""
    deployment = await share(LLM_IDLE_TIMEOUT="1s")
    async with deployment.client() as client:
        yield client


@pytest.mark.parametrize(
    "model", ["openai/script-silent", "openai/script-hang-first", "openai/script-hang", "anthropic/script-hang"]
)
async def test_a_silence_is_told_as_such(impatient: Client, model: str) -> None:
    await check_failure(impatient, model, SILENT)


async def test_text_that_was_streamed_before_a_silence_is_kept(impatient: Client, fake: FakeModel) -> None:
    await check_kept(impatient, fake, hangs(after=4))


async def check_text_kept(client: Client, started: Started, events: Sequence[Event]) -> None:
    """What readers saw, and no more, is stored after the question."""
    answers = [said["content"]["content"] for said in (await client.messages(started.thread_id))[1:]]
    assert answers == ([streamed_text(events)] if streamed_text(events) else [])

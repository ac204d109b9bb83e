import asyncio
from dataclasses import replace
from itertools import pairwise
from time import perf_counter
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID

import pytest
from httpx2 import AsyncClient

from agent import compaction, history, models, summary, temporary
from agent.compaction import Window
from agent.context import RunContext, RunFailed
from agent.conversation import Conversation
from agent.loop import run_agent
from agent.thread_manager import store
from services import messages
from services.messages import Message, NewMessage
from services.postgres import Pool
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import acts, ask, make_context, resumed, rows_of, tool_parts
from tests.agent.test_compaction import said, stored
from tests.fakes import Asked, FakeModel

PROSE = "The quick brown fox jumps over the lazy dog. "
MODEL = "openai/m"
TOO_LONG = fakes.refuses(400, "This model's maximum context length is 8192 tokens.", "context_length_exceeded")


def with_window(settings: Settings, tokens: int) -> Settings:
    return settings.model_copy(update={"models": settings.models.model_copy(update={"context_window": tokens})})


async def fill(pool: Pool, thread_id: UUID, count: int, text: str = PROSE) -> None:
    """A conversation of so many messages."""
    roles = ("user", "assistant")
    said = [NewMessage(roles[n % 2], {"role": roles[n % 2], "content": f"{n} {text}"}) for n in range(count)]
    async with pool.acquire() as conn:
        await messages.add(conn, thread_id, said)
        await ask(conn, thread_id, "What was the first thing?")


def shown(request: Asked) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = request.body["messages"]
    return told


async def test_a_short_thread_is_read_like_a_long_one(pool: Pool, http: AsyncClient, settings: Settings) -> None:
    ctx, _ = await make_context(pool, http, settings, MODEL)
    await fill(pool, ctx.run.thread_id, 6)
    short = await history.load(ctx)
    assert len(short.conversation) > 3
    with patch.object(history, "SHORT_ROWS", 3):
        assert await history.load(ctx) == short


async def test_a_thread_of_two_thousand_messages_is_answered(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, with_window(settings, 128_000), MODEL)
    await fill(pool, ctx.run.thread_id, 2_000)
    fake.script(fakes.says())
    await run_agent(ctx)
    told = shown(fake.requests[0])
    assert len(told) == 2_003
    assert [each["content"].split()[0] for each in told[2:-1]] == [str(n) for n in range(2_000)]


async def test_a_thread_of_four_hundred_thousand_tokens_is_fitted_into_the_window(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, with_window(settings, 128_000), MODEL)
    await fill(pool, ctx.run.thread_id, 400, PROSE * 100)
    fake.script(fakes.says())
    await run_agent(ctx)
    told = shown(fake.requests[0])
    assert "What is new" in told[1]["content"]
    assert told[-1]["content"] == "What was the first thing?"
    assert told[-2]["content"].endswith(PROSE)
    assert sum(len(each["content"]) for each in told) < 128_000 * 4 * compaction.TARGET


async def test_with_a_context_manager_the_model_sums_up_what_is_old(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, log = await make_context(pool, http, with_window(settings, 20_000), MODEL, enable_context_manager=True)
    await fill(pool, ctx.run.thread_id, 60, PROSE * 40)
    fake.script(fakes.says("They counted to fifty."), fakes.says("It was 0."))
    await run_agent(ctx)
    summing, asking = fake.requests
    assert "stands for it from now on" in shown(summing)[0]["content"]
    assert "tools" not in summing.body
    told = shown(asking)
    assert told[1]["content"].endswith("They counted to fifty.")
    assert len(told) < 30
    assert told[-2]["content"].startswith("59 ")
    assert ctx.usage["prompt_tokens"] == 2 * fakes.USAGE["prompt_tokens"]
    [summary] = [row for row in await rows_of(ctx) if row.type == "summary"]
    assert [event.type for event in log.said("complete")] == ["summary", "assistant"]
    again = await Conversation.load(resumed(ctx)[0])
    assert again.history.summary == summary
    assert len(again.history.conversation) == len(told) - 1
    assert {stored.type for stored in again.history.of_run(ctx.run.id)} == {"summary", "assistant"}


async def test_a_summary_that_fails_does_not_fail_the_run(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, with_window(settings, 20_000), MODEL, enable_context_manager=True)
    await fill(pool, ctx.run.thread_id, 60, PROSE * 40)
    fake.script(fakes.wrong_key(), fakes.says("It was 0."))
    await run_agent(ctx)
    assert [row.type for row in await rows_of(ctx)] == ["assistant"]


@pytest.mark.parametrize("model", [MODEL, "anthropic/claude-sonnet-4-5"])
async def test_a_request_that_is_refused_for_its_length_is_shortened_and_asked_once_more(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel, model: str
) -> None:
    ctx, log = await make_context(pool, http, settings, model)
    await fill(pool, ctx.run.thread_id, 40, PROSE * 20)
    fake.script(TOO_LONG, fakes.says())
    await run_agent(ctx)
    first, second = (len(str(shown(request))) for request in fake.requests)
    assert second < first / 2
    assert log.kinds == ["assistant_response_start", "chunk", "complete", "finish"]


async def test_a_request_that_is_too_long_twice_ends_the_run_with_the_providers_words(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, MODEL)
    fake.script(TOO_LONG, TOO_LONG)
    with pytest.raises(RunFailed, match="maximum context length"):
        await run_agent(ctx)
    assert len(fake.requests) == 2


async def test_another_refusal_is_not_taken_for_a_long_request(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, MODEL)
    fake.script(fakes.refuses(400, "Unknown parameter: frobnicate."))
    with pytest.raises(RunFailed, match="frobnicate"):
        await run_agent(ctx)
    assert len(fake.requests) == 1


async def test_what_the_provider_counted_corrects_the_estimate_of_later_runs(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, MODEL)
    await fill(pool, ctx.run.thread_id, 40, PROSE * 20)
    counted = replace(fakes.says(), usage={"prompt_tokens": 18_000, "completion_tokens": 7, "total_tokens": 18_007})
    fake.script(counted)
    await run_agent(ctx)
    later = await Conversation.load(ctx)
    await later.request()
    [answer] = await rows_of(ctx)
    assert later.window.factor == pytest.approx(18_000 / answer.metadata["prompt_estimate"])


async def test_the_browser_is_shown_as_it_stands_and_an_image_only_once(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/gpt-4o")
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    seen = {"role": "user", "content": [{"type": "text", "text": "cat.png"}, image]}
    async with pool.acquire() as conn:
        beside = [
            NewMessage("browser_state", {"url": "http://old/"}, is_llm_message=False),
            NewMessage("browser_state", {"url": "http://new/", "screenshot_base64": "QUI="}, is_llm_message=False),
            NewMessage("image_context", seen, is_llm_message=False),
        ]
        await messages.add(conn, ctx.run.thread_id, beside)
    fake.script(acts(*tool_parts(0, "task_list", '{"tasks": []}')), fakes.says())
    await run_agent(ctx)
    first, second = (shown(request) for request in fake.requests)
    browser, picture = first[-2:]
    assert "http://new/" in browser["content"][0]["text"]
    assert "QUI" not in browser["content"][0]["text"]
    assert browser["content"][1]["image_url"]["url"] == "data:image/jpeg;base64,QUI="
    assert picture["content"] == seen["content"]
    assert second[-1] == browser
    assert [row.type for row in await rows_of(ctx)] == ["assistant", "tool", "assistant"]


async def test_a_model_that_does_not_see_is_told_so_in_place_of_an_image(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/gpt-3.5-turbo")
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    async with pool.acquire() as conn:
        seen = {"role": "user", "content": [image]}
        await messages.add(conn, ctx.run.thread_id, [NewMessage("image_context", seen, is_llm_message=False)])
    fake.script(fakes.says())
    await run_agent(ctx)
    assert "cannot see" in shown(fake.requests[0])[-1]["content"][0]["text"]


async def test_what_others_say_during_a_run_is_shown_in_the_next_turn(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, MODEL)
    conversation = await Conversation.load(ctx)
    async with pool.acquire() as conn, pool.acquire() as late:
        transaction = late.transaction()
        await transaction.start()
        content = '{"role": "user", "content": "Said first, committed last"}'
        adding = "INSERT INTO messages (thread_id, type, content) VALUES ($1, 'user', $2::text::jsonb)"
        await late.execute(adding, ctx.run.thread_id, content)
        await ask(conn, ctx.run.thread_id, "Said last, committed first")
        await conversation.refresh()
        assert len(conversation.history.conversation) == 2
        await transaction.commit()
    await conversation.refresh()
    await conversation.refresh()
    told = [stored.content["content"] for stored in conversation.history.conversation]
    assert told[1:] == ["Said first, committed last", "Said last, committed first"]


async def test_of_a_thread_without_end_the_beginning_and_the_newest_part_are_read(
    pool: Pool, http: AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "LONGEST_BYTES", 40_000)
    monkeypatch.setattr(history, "PAGE_ROWS", 10)
    ctx, _ = await make_context(pool, http, settings, MODEL)
    await store(ctx, NewMessage("assistant", {"role": "assistant", "content": "old"}, {"usage": {"total_tokens": 3}}))
    await fill(pool, ctx.run.thread_id, 100, PROSE * 20)
    read = await history.load(ctx)
    told = [stored.content["content"].split()[0] for stored in read.conversation]
    assert told[:2] == ["What", "old"]
    assert told[-2:] == ["99", "What"]
    assert 40 < len(told) < 70
    assert [stored.metadata for stored in read.of_run(ctx.run.id)][:1] == [{"usage": {"total_tokens": 3}}]


async def test_an_iteration_over_five_hundred_messages_takes_little_time(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    """The promise is 50 ms before the model is called; tests allow five times that."""
    ctx, _ = await make_context(pool, http, with_window(settings, 128_000), MODEL)
    await fill(pool, ctx.run.thread_id, 500, PROSE * 5)
    conversation = await Conversation.load(ctx)
    await conversation.request()
    assert min([await iteration(conversation) for _ in range(5)]) < 5 * 0.05


async def iteration(conversation: Conversation) -> float:
    """Seconds of what comes before each call of the model."""
    began = perf_counter()
    await conversation.refresh()
    await conversation.request()
    return perf_counter() - began


@pytest.mark.parametrize(
    "forged",
    [
        NewMessage("summary", {"role": "user", "content": "All is done."}),
        NewMessage("summary", "All is done.", {"covers": "everything"}),
        NewMessage("assistant", {"role": "assistant", "content": "So.", "thinking_blocks": 7}),
        NewMessage("assistant", {"role": "assistant", "content": "So.", "thinking_blocks": ["x", None]}),
        NewMessage(
            "assistant", {"role": "assistant", "content": "So.", "tool_calls": [7, {"function": 7}, {"id": []}]}
        ),
        NewMessage("tool", {"tool_call_id": {}, "content": [7]}),
        NewMessage("image_context", {"role": "system", "content": [{"type": "image_url", "image_url": {}}, 7]}),
        NewMessage("image_context", [7]),
        NewMessage("browser_state", [7]),
        NewMessage("browser_state", {"image": {"url": 7}, "screenshot_base64": 7}),
        NewMessage("user", {"role": ["user"], "content": {"text": 7}}),
    ],
    ids=lambda forged: f"{forged.type} {forged.content}",
)
@pytest.mark.parametrize("model", [MODEL, "anthropic/claude-sonnet-4-5"])
async def test_no_message_that_a_client_may_post_hinders_a_run(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel, model: str, forged: NewMessage
) -> None:
    ctx, _ = await make_context(pool, http, settings, model)
    async with pool.acquire() as conn:
        await messages.add(conn, ctx.run.thread_id, [forged])
        await ask(conn, ctx.run.thread_id, "Go on?")
    fake.script(fakes.says("Yes."))
    await run_agent(ctx)
    assert "What is new" in str(shown(fake.requests[0]))


async def test_what_was_summed_up_does_not_come_back_in_the_next_turn(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, with_window(settings, 20_000), MODEL, enable_context_manager=True)
    await fill(pool, ctx.run.thread_id, 60, PROSE * 40)
    fake.script(fakes.says("They counted."), acts(*tool_parts(0, "expand_message", "{}")), fakes.says("Done."))
    await run_agent(ctx)
    _, before, after = (shown(request) for request in fake.requests)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 2


async def test_what_is_committed_late_below_a_summary_is_still_read(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, with_window(settings, 20_000), MODEL, enable_context_manager=True)
    late = await pool.acquire()
    held = late.transaction()
    await held.start()
    said = {"role": "user", "content": "Late words."}
    await late.execute(
        "INSERT INTO messages (thread_id, type, content) VALUES ($1, 'user', $2)", ctx.run.thread_id, said
    )
    await fill(pool, ctx.run.thread_id, 60, PROSE * 40)
    fake.script(fakes.says("They counted."), fakes.says("Done."))
    conversation = await Conversation.load(ctx)
    told = summary.told

    async def commit_and_tell(*given: Any) -> Any:
        await held.commit()
        return await told(*given)

    with patch.object(summary, "told", commit_and_tell):
        await conversation.request()
    await conversation.refresh()
    again = await Conversation.load(resumed(ctx)[0])
    await pool.release(late)
    for known in (conversation, again):
        assert known.history.summary
        assert "Late words." in [each.content["content"] for each in known.history.conversation]


async def test_twenty_thousand_messages_are_measured_without_holding_up_other_runs() -> None:
    found = [said(n, "user", f"hi {n}") for n in range(20_000)]
    conversation = Conversation(cast(RunContext, None), history.History(conversation=found), Window(1_000))
    measuring, measured = asyncio.create_task(conversation.measure()), [0]
    while not measuring.done():
        await asyncio.sleep(0)
        measured.append(len(conversation.window.costs))
    assert measured[-1] == 20_000
    assert max(later - earlier for earlier, later in pairwise(measured)) <= 500, "so many others wait for"


def image(position: int) -> Message:
    return stored(position, "image_context", {"role": "user", "content": [{"type": "text", "text": "Look."}]})


async def test_an_image_that_was_seen_before_a_summary_does_not_come_back(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    ctx, _ = await make_context(pool, http, settings, MODEL)
    seen = NewMessage("image_context", image(1).content, is_llm_message=False)
    answered = NewMessage("assistant", {"role": "assistant", "content": "I see."})
    async with pool.acquire() as conn:
        *_, last = await messages.add(conn, ctx.run.thread_id, [seen, answered])
        summed_up = NewMessage("summary", {"role": "user", "content": "It was seen."}, {"covers": last.position})
        await messages.add(conn, ctx.run.thread_id, [summed_up])
        await ask(conn, ctx.run.thread_id, "And now?")
    assert (await history.load(ctx)).beside == []


def test_an_image_that_a_call_in_the_middle_of_an_answer_brought_is_still_to_be_seen() -> None:
    first, second = [stored(n, "assistant", {"role": "assistant", "content": "I"}, answer_id="a") for n in (2, 5)]
    assert history.History(conversation=[said(1, "user", "Look"), first, second]).last_answer == 2


@pytest.mark.parametrize("content", ["x" * 5_000_000, [{"type": "text", "text": "x" * 5_000_000}] * 3])
@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/script-text"])
def test_what_is_shown_beside_an_image_does_not_fill_the_window(content: Any, model: str) -> None:
    put = stored(1, "image_context", {"role": "user", "content": content})
    shown = temporary.shown([put], models.look_up(model))
    assert len(str(shown)) <= temporary.SHOWN_CHARS + 500

import asyncio

import pytest
from httpx2 import AsyncClient

from agent import history, loop
from agent.context import RunContext, RunFailed
from agent.llm import demo
from agent.loop import keep_draft, run_agent
from services.messages import Message
from services.postgres import Pool
from services.runs import lifecycle
from services.runs.fence import FenceLost
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import RecordingLog, ask, eventually, fence_of, make_context, make_run, rows_of
from tests.anthropic_wire import SIGNATURE
from tests.fakes import FakeModel

WHOLE = "".join(fakes.WORDS)
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


async def answers(ctx: RunContext) -> list[Message]:
    return [message for message in (await history.load(ctx)).conversation if message.type == "assistant"]


def next_attempt(ctx: RunContext) -> tuple[RunContext, RecordingLog]:
    """The same attempt of the row, driven anew: what a worker that takes over starts with."""
    log = RecordingLog()
    return RunContext(ctx.run, ctx.fence, log, ctx.pool, ctx.http, ctx.settings), log


async def test_a_question_is_answered_streamed_and_stored(pool: Pool, http: AsyncClient, settings: Settings) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/script-reasoning")
    await run_agent(ctx)
    [stored] = await answers(ctx)
    assert stored.content == {"role": "assistant", "content": WHOLE, "reasoning_content": "Let me think. "}
    assert stored.agent_run_id == ctx.run.id
    assert log.kinds == ["assistant_response_start", "chunk", "complete", "finish"]
    assert log.chunks == WHOLE
    [complete] = log.said("complete")
    assert complete.message_id == stored.message_id
    assert complete.content == stored.content
    assert log.events[-1].content["finish_reason"] == "stop"
    assert ctx.usage == USAGE
    assert ctx.draft.text == ""


async def test_signed_thinking_is_stored_and_goes_back_unchanged_to_anthropic_only(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    kept = {"type": "thinking", "thinking": "Let me think. ", "signature": SIGNATURE}
    thinking = {"enable_thinking": True, "reasoning_effort": "high"}
    ctx, log = await make_context(pool, http, settings, "anthropic/claude-opus-4-8", **thinking)
    fake.script(*[fakes.thinks("Let me ", "think. ")] * 2, fakes.says())
    await run_agent(ctx)
    [stored] = await answers(ctx)
    content = {"role": "assistant", "content": WHOLE, "reasoning_content": "Let me think. ", "thinking_blocks": [kept]}
    assert stored.content == content
    assert stored.metadata["finish_reason"] == "stop"
    assert log.chunks == WHOLE
    for model in ("anthropic/claude-opus-4-8", "openai/m"):
        async with pool.acquire() as conn:
            await lifecycle.end(conn, ctx.fence, "completed", error=None, usage={})
            await ask(conn, ctx.run.thread_id, "And now?")
            run = await make_run(conn, ctx.run.thread_id, model, **thinking)
        ctx = RunContext(run, fence_of(run), RecordingLog(), pool, http, settings)
        await run_agent(ctx)
    _, by_anthropic, by_openai = fake.requests
    assert by_anthropic.body["messages"][1]["content"] == [kept, {"type": "text", "text": WHOLE}]
    assert by_openai.body["messages"][2] == {"role": "assistant", "content": WHOLE}


async def test_the_model_reads_the_system_prompt_and_the_whole_thread(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/script-text")
    await run_agent(ctx)
    async with pool.acquire() as conn:
        await lifecycle.end(conn, ctx.fence, "completed", error=None, usage={})
        await ask(conn, ctx.run.thread_id, "And now?")
        run = await make_run(conn, ctx.run.thread_id, "openai/script-text")
    await run_agent(RunContext(run, fence_of(run), RecordingLog(), pool, http, settings))
    shown = fake.requests[-1].body["messages"]
    assert [said["role"] for said in shown] == ["system", "user", "assistant", "user"]
    assert shown[2]["content"] == WHOLE
    assert len(await answers(ctx)) == 2


async def test_without_stream_only_the_whole_answer_is_told(pool: Pool, http: AsyncClient, settings: Settings) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/script-text", stream=False)
    await run_agent(ctx)
    assert log.kinds == ["assistant_response_start", "complete", "finish"]


async def test_effort_is_passed_on_only_with_thinking_enabled(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    for thinking in (False, True):
        ctx, _ = await make_context(
            pool, http, settings, "openai/script-text", enable_thinking=thinking, reasoning_effort="high"
        )
        await run_agent(ctx)
    assert [asked.body.get("reasoning_effort") for asked in fake.requests] == [None, "high"]


async def test_a_run_whose_answer_is_stored_is_not_answered_again_but_told_again(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/script-text")
    await run_agent(ctx)
    async with pool.acquire() as conn:
        await ask(conn, ctx.run.thread_id, "Something for the next run")
    resumed, log = next_attempt(ctx)
    await run_agent(resumed)
    [stored] = await answers(ctx)
    assert len(fake.requests) == 1
    assert log.kinds == ["complete", "finish"]
    assert log.events[0].message_id == stored.message_id
    assert resumed.usage == USAGE


async def test_a_run_that_died_in_mid_text_is_answered_anew(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/m")
    fake.script(fakes.hangs(after=3), fakes.says())
    dying = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: bool(log.chunks))
    dying.cancel()
    await asyncio.wait({dying})
    resumed, log = next_attempt(ctx)
    await run_agent(resumed)
    assert log.chunks == WHOLE
    assert len(await answers(ctx)) == 1


async def test_a_model_that_breaks_off_fails_the_run_and_its_text_is_kept_once(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/script-cut")
    with pytest.raises(RunFailed, match="broke off"):
        await run_agent(ctx)
    await keep_draft(ctx)
    await keep_draft(ctx)
    [kept] = await answers(ctx)
    assert kept.content["content"] == log.chunks == "Hello, this "
    assert kept.metadata["interrupted"] is True
    assert log.kinds == ["assistant_response_start", "chunk", "complete"]
    [complete] = log.said("complete")
    assert complete.message_id == kept.message_id


async def test_a_run_that_kept_interrupted_text_is_not_taken_for_answered(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/script-cut")
    with pytest.raises(RunFailed):
        await run_agent(ctx)
    await keep_draft(ctx)
    resumed, _ = next_attempt(ctx)
    with pytest.raises(RunFailed):
        await run_agent(resumed)


@pytest.mark.parametrize("model", ["script-silent", "script-hang-first"])
async def test_a_run_stopped_during_a_silent_call_keeps_nothing_and_hangs_up(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel, model: str
) -> None:
    ctx, log = await make_context(pool, http, settings, f"openai/{model}")
    running = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: bool(fake.requests))
    running.cancel()
    await asyncio.wait({running})
    await keep_draft(ctx)
    await fake.requests[0].until_over()
    assert fake.requests[0].hung_up_at
    assert (log.events, await answers(ctx)) == ([], [])


async def test_a_run_stopped_in_mid_text_keeps_exactly_what_readers_saw(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/m")
    fake.script(fakes.says(*(f"word{n} " for n in range(10_000)), delay=0.02))
    running = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: len(log.chunks) > 30)
    running.cancel()
    await asyncio.wait({running})
    await keep_draft(ctx)
    [kept] = await answers(ctx)
    assert kept.content["content"] == log.chunks
    await fake.requests[0].until_over()
    assert fake.requests[0].hung_up_at


async def test_a_stop_while_the_answer_is_being_stored_does_not_store_it_twice(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/script-text")
    async with pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM agent_runs WHERE id = $1 FOR UPDATE", ctx.run.id)
        running = asyncio.create_task(run_agent(ctx))
        await eventually(lambda: log.chunks == WHOLE)
        await asyncio.wait({running}, timeout=0.1)
        running.cancel()
        await asyncio.wait({running})
    await keep_draft(ctx)
    [kept] = await answers(ctx)
    assert kept.content["content"] == WHOLE
    assert len(log.said("complete")) == 1


async def test_a_run_that_lost_its_fence_stores_nothing_and_says_no_complete(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/script-text")
    await pool.execute("UPDATE agent_runs SET attempt = attempt + 1 WHERE id = $1", ctx.run.id)
    with pytest.raises(FenceLost):
        await run_agent(ctx)
    with pytest.raises(FenceLost):
        await keep_draft(ctx)
    assert (log.said("complete"), await answers(ctx)) == ([], [])


async def test_an_answer_without_end_is_ended(
    pool: Pool, http: AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_ANSWER_CHARS", 100)
    ctx, _ = await make_context(pool, http, settings, "openai/script-slow", stream=False)
    with pytest.raises(RunFailed, match="more than 100 characters"):
        await run_agent(ctx)
    assert len(ctx.draft.text) < 120


@pytest.mark.parametrize(
    ("finish_reason", "sentence"),
    [
        ("stop", "openai/m ended without an answer."),
        ("length", "openai/m reached its length limit before it wrote an answer."),
        ("content_filter", "The provider's content filter withheld the answer of openai/m."),
    ],
)
async def test_an_empty_answer_is_not_a_completed_run(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel, finish_reason: str, sentence: str
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    fake.script(fakes.empty(finish_reason))
    with pytest.raises(RunFailed) as failed:
        await run_agent(ctx)
    assert str(failed.value) == sentence
    await keep_draft(ctx)
    assert await answers(ctx) == []


async def test_a_thread_without_a_message_to_answer_says_so(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/script-text")
    await pool.execute("DELETE FROM messages WHERE thread_id = $1", ctx.run.thread_id)
    with pytest.raises(RunFailed, match="no message"):
        await run_agent(ctx)
    assert fake.requests == []


async def test_the_demo_needs_no_key_and_no_network(pool: Pool, http: AsyncClient, fake: FakeModel) -> None:
    ctx, log = await make_context(pool, http, Settings(), "demo/lorem?chunks=20&delay_ms=0")
    await run_agent(ctx)
    [stored] = await answers(ctx)
    assert stored.content["content"] == log.chunks
    assert ctx.usage["completion_tokens"] == 20
    assert fake.requests == []


async def test_the_tour_shows_its_tools_and_ends_with_a_question_even_without_a_sandbox(
    pool: Pool, http: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TOUR_DELAY", 0)
    ctx, log = await make_context(pool, http, Settings(), "demo/tour")
    await run_agent(ctx)
    rows = await rows_of(ctx)
    results = {row.metadata["function_name"]: row for row in rows if row.type == "tool"}
    assert {name: row.metadata["tool_status"] for name, row in results.items()} == {
        "task_list": "completed",
        "create_file": "failed",
        "ask": "completed",
    }
    assert "1 of 4 done" in results["task_list"].content["content"]
    assert "no sandbox" in results["create_file"].content["content"]
    assert log.events[-1].content["finish_reason"] == "agent_terminated"
    assert log.chunks == "".join(demo.STOPS)

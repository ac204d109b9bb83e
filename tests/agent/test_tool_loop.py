import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from httpx2 import AsyncClient

from agent import tool_runner
from agent.context import AgentConfig, RunContext
from agent.loop import keep_draft, run_agent
from agent.tools.standard import STANDARD
from services import messages
from services.messages import NewMessage
from services.postgres import Pool
from services.runs.events import Event
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import Counting, RecordingLog, acts, eventually, make_context, resumed, rows_of, tool_parts
from tests.fakes import FakeModel
from tests.waiting import PATIENT

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
MODEL = "openai/m"


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
async def ctx(pool: Pool, http: AsyncClient, settings: Settings, counting: Counting) -> RunContext:
    made, _ = await make_context(pool, http, settings, MODEL)
    made.tools = counting.registry
    return made


def log_of(ctx: RunContext) -> RecordingLog:
    assert isinstance(ctx.log, RecordingLog)
    return ctx.log


def statuses(log: RecordingLog) -> list[str]:
    """Every status, with the tool it is about."""
    said = [event.content for event in log.events if event.type == "status"]
    told = (f"{each['status_type']} {each.get('function_name', '')}".strip() for each in said)
    return [status for status in told if not status.startswith("tool_call_chunk")]


def about_status(log: RecordingLog, kind: str) -> list[Event]:
    return [event for event in log.events if event.content.get("status_type") == kind]


def configure(ctx: RunContext, **config: Any) -> None:
    ctx.config = replace(AgentConfig(), **config)


async def roles(ctx: RunContext) -> list[str]:
    return [f"{row.type}/{row.content['role']}" for row in await rows_of(ctx)]


async def results(ctx: RunContext) -> list[tuple[str, str]]:
    """Each result's status and what the model reads."""
    return [(row.metadata["tool_status"], row.content["content"]) for row in await rows_of(ctx) if row.type == "tool"]


def xml(*invokes: str) -> str:
    calls = "".join(f'<invoke name="{name}"></invoke>' for name in invokes)
    return f"<function_calls>{calls}</function_calls>"


async def test_a_run_of_several_turns_with_native_and_xml_calls(
    ctx: RunContext, fake: FakeModel, counting: Counting
) -> None:
    fake.script(
        acts(*tool_parts(0, "look", '{"text": "around"}', "a"), *tool_parts(1, "act", "{}", "b"), words="I will look."),
        fakes.says("Again: <function_calls><invoke name=", '"act"><parameter name="text">x</para', "meter></invoke>",
                   "</function_calls>", " and <look>here</look>"),
        fakes.says("Well. ", '<ask attachments="a.txt">', "Is that ", "all?</a", "sk>"),
    )  # fmt: skip
    await run_agent(ctx)
    assert counting.calls == ["look around", "act", "act x", "look here"]
    log, rows = log_of(ctx), await rows_of(ctx)
    assert statuses(log) == [
        "assistant_response_start", "tool_started look", "tool_completed look", "tool_started act",
        "tool_completed act", "finish",
        "assistant_response_start", "tool_started act", "tool_completed act", "tool_started look",
        "tool_completed look", "finish",
        "assistant_response_start", "tool_started ask", "tool_completed ask", "finish",
    ]  # fmt: skip
    assert await roles(ctx) == [
        "assistant/assistant", "tool/tool", "tool/tool", "assistant/assistant", "tool/user", "tool/user",
        "assistant/assistant", "tool/user",
    ]  # fmt: skip
    told = [event for event in log.events if event.message_id]
    assert [(event.message_id, event.content) for event in told] == [(row.message_id, row.content) for row in rows]
    finishes = [event.content["finish_reason"] for event in about_status(log, "finish")]
    assert finishes == ["tool_calls", "stop", "agent_terminated"]
    assert ctx.usage == {name: 3 * tokens for name, tokens in USAGE.items()}
    assert [len(asked.body["messages"]) for asked in fake.requests] == [2, 5, 8]


async def test_what_the_model_is_shown_of_its_calls_pairs_each_with_its_result(
    ctx: RunContext, fake: FakeModel
) -> None:
    fake.script(
        acts(*tool_parts(0, "look", '{"text": "around"}', "a"), words="Hm."),
        fakes.says(xml("act")),
        fakes.says("Done."),
    )
    await run_agent(ctx)
    first, _, last = fake.requests
    assert [offered["function"]["name"] for offered in first.body["tools"]][:2] == ["ask", "complete"]
    shown = last.body["messages"]
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"text":"around"}'}}
    assert shown[2:4] == [
        {"role": "assistant", "content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "look around done"},
    ]
    assert shown[4] == {"role": "assistant", "content": xml("act")}
    told = orjson.loads(shown[5]["content"])["tool_execution"]
    assert (shown[5]["role"], told["function_name"], told["arguments"]) == ("user", "act", {})
    assert told["result"] == {"success": True, "output": "act done", "error": None}


async def test_a_status_says_which_call_it_is_about_and_where_its_result_is(ctx: RunContext, fake: FakeModel) -> None:
    fake.script(acts(*tool_parts(0, "look", "{}", "a"), words="Hm."), fakes.says("<complete>Done</complete>"))
    await run_agent(ctx)
    chunk = about_status(log_of(ctx), "tool_call_chunk")[0]
    assert chunk.content["tool_call_chunk"] == {
        "id": "a", "index": 0, "type": "function", "function": {"name": "look", "arguments": ""},
    }  # fmt: skip
    about = {"function_name": "look", "xml_tag_name": None, "tool_index": 0, "tool_call_id": "a"}
    started, ended = about_status(log_of(ctx), "tool_started")[0], about_status(log_of(ctx), "tool_completed")[0]
    for event in (chunk, started, ended):
        assert {name: event.content[name] for name in about} == about
        assert "message" in event.content
    looked, completed = [row for row in await rows_of(ctx) if row.type == "tool"]
    assert ended.metadata == {
        "thread_run_id": str(ctx.run.id), "linked_tool_result_message_id": str(looked.message_id),
    }  # fmt: skip
    last = about_status(log_of(ctx), "tool_completed")[-1]
    assert last.content["xml_tag_name"] == "complete"
    assert last.metadata["agent_should_terminate"] is True
    assert last.metadata["linked_tool_result_message_id"] == str(completed.message_id)


@pytest.mark.parametrize("name", ["ask", "complete", "web-browser-takeover"])
@pytest.mark.parametrize("native", [True, False], ids=["native", "tag"])
async def test_a_terminating_tool_ends_the_run_and_no_call_behind_it_is_made(
    ctx: RunContext, fake: FakeModel, counting: Counting, name: str, native: bool
) -> None:
    function = name.replace("-", "_")
    if native:
        fake.script(acts(*tool_parts(0, function, '{"text": "So?"}'), *tool_parts(1, "act", "{}")))
    else:
        fake.script(fakes.says(f"<{name}>So?</{name}><act></act>"))
    await run_agent(ctx)
    assert counting.calls == []
    assert log_of(ctx).events[-1].content["finish_reason"] == "agent_terminated"
    [ended, not_made] = await results(ctx)
    assert (ended[0], not_made[0]) == ("completed", "failed")


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        (tool_parts(0, "fly", "{}"), "failed", "There is no tool fly; there are: ask, complete,"),
        (tool_parts(0, "look", '{"text": '), "failed", "are no JSON"),
        (tool_parts(0, "look", "[1]"), "failed", "must be a JSON object: [1]"),
        (tool_parts(0, "look", '{"tekst": 1}'), "failed", "tekst: Extra inputs are not permitted"),
        (tool_parts(0, "ask", "{}"), "failed", "text: Field required"),
        (tool_parts(0, "refuse", "{}"), "failed", "It cannot be done."),
        (tool_parts(0, "crash", "{}"), "error", "crash broke off: ZeroDivisionError: division by zero"),
        (tool_parts(0, "leave", "{}"), "error", "leave broke off: SystemExit: gone"),
        (tool_parts(0, "hang", "{}"), "error", "longer than 0.05 seconds"),
        (tool_parts(0, "flood", "{}"), "completed", "[900000 more characters were left out]"),
        (fakes.contents(["<ask></ask>"]), "failed", "text: Field required"),
        (fakes.contents([xml("fly")]), "failed", "There is no tool fly"),
        (fakes.contents(['<function_calls><invoke name="look"><parameter name="text">x']), "failed", "was cut off"),
    ],
)
async def test_what_goes_wrong_with_a_call_is_a_result_that_the_model_can_mend(
    ctx: RunContext, fake: FakeModel, call: list[dict[str, Any]], status: str, words: str
) -> None:
    fake.script(acts(*call), fakes.says("Done."))
    await run_agent(ctx)
    [(was, told)] = await results(ctx)
    assert was == status
    assert words in told
    assert f"tool_{status}" in " ".join(statuses(log_of(ctx)))
    assert words[:20] in orjson.loads(orjson.dumps(fake.requests[1].body["messages"][-1]["content"]))
    for shown in fake.requests[1].body["messages"]:
        for made in shown.get("tool_calls", []):
            assert isinstance(orjson.loads(made["function"]["arguments"]), dict)


async def test_a_run_ends_at_its_limit_of_answers(ctx: RunContext, fake: FakeModel, counting: Counting) -> None:
    configure(ctx, max_iterations=3)
    fake.script(*[acts(*tool_parts(0, "look", "{}")) for _ in range(5)])
    await run_agent(ctx)
    assert len(fake.requests) == len(counting.calls) == 3
    assert log_of(ctx).events[-1].content["finish_reason"] == "max_iterations_reached"
    again, log = resumed(ctx)
    await run_agent(again)
    assert len(fake.requests) == 3, "an attempt that takes over has no more of them"
    assert log.events[-1].content["finish_reason"] == "max_iterations_reached"


async def test_answers_that_are_cut_off_in_a_call_are_continued_up_to_a_limit(ctx: RunContext, fake: FakeModel) -> None:
    configure(ctx, max_auto_continues=2)
    fake.script(*[fakes.says("<look>so much", finish_reason="length") for _ in range(5)])
    await run_agent(ctx)
    assert len(fake.requests) == 3
    assert log_of(ctx).events[-1].content["finish_reason"] == "max_auto_continues_reached"
    assert [status for status, _ in await results(ctx)] == ["failed"] * 3


async def test_a_text_that_only_speaks_of_a_tag_ends_the_run(ctx: RunContext, fake: FakeModel) -> None:
    fake.script(fakes.says("Use <ask> to ask, or\n```\n<act>x</act>\n```\n"))
    await run_agent(ctx)
    assert await roles(ctx) == ["assistant/assistant"]
    assert statuses(log_of(ctx)) == ["assistant_response_start", "finish"]


async def test_no_more_xml_calls_are_made_than_allowed_and_the_rest_is_neither_shown_nor_stored(
    ctx: RunContext, fake: FakeModel, counting: Counting
) -> None:
    configure(ctx, max_xml_tool_calls=2)
    fake.script(
        fakes.says("<look>a</look> then <look>", "b</look> and <look>c</look>", delay=0.01), fakes.says("Done.")
    )
    await run_agent(ctx)
    assert counting.calls == ["look a", "look b"]
    rows = await rows_of(ctx)
    assert rows[0].content["content"] == "<look>a</look> then <look>b</look>"
    assert rows[0].metadata["finish_reason"] == "xml_tool_limit_reached"
    assert log_of(ctx).chunks == "<look>a</look> then <look>b</look>Done."
    await fake.requests[0].until_over()
    assert len(fake.requests) == 2


@pytest.mark.parametrize("execution", ["sequential", "parallel"])
@pytest.mark.parametrize("on_stream", [True, False], ids=["on stream", "after"])
async def test_calls_are_made_one_by_one_or_at_once(
    ctx: RunContext, fake: FakeModel, counting: Counting, execution: str, on_stream: bool
) -> None:
    configure(ctx, tool_execution=execution, execute_on_stream=on_stream)
    parts = [part for n in range(4) for part in tool_parts(n, "look", f'{{"text": "{n}"}}', f"c{n}")]
    fake.script(acts(*parts, words="Hm."), fakes.says("Done."))
    running = asyncio.create_task(run_agent(ctx))
    if execution == "parallel":
        counting.hold = asyncio.Event()
        await eventually(lambda: counting.at_once > 1)
        counting.hold.set()
    await running
    assert sorted(counting.calls) == ["look 0", "look 1", "look 2", "look 3"]
    assert (counting.most_at_once > 1) is (execution == "parallel")
    shown = fake.requests[1].body["messages"][2:]
    made = [call["id"] for said in shown for call in said.get("tool_calls", [])]
    answered = [said["tool_call_id"] for said in shown if said["role"] == "tool"]
    assert made == answered == ["c0", "c1", "c2", "c3"]


async def test_on_stream_a_tool_starts_while_the_model_still_speaks(
    ctx: RunContext, fake: FakeModel, counting: Counting
) -> None:
    configure(ctx, execute_on_stream=True)
    talker = fakes.Talker("speaker", before=["I look. ", "<look>a</look>"], after=["over"])
    fake.script(talker.reply, fakes.says("Done."))
    running, log = asyncio.create_task(run_agent(ctx)), log_of(ctx)
    await eventually(lambda: "tool_completed look" in statuses(log))
    talker.enough()
    await running
    ended = [n for n, event in enumerate(log.events) if event.content.get("status_type") == "tool_completed"]
    spoken = [n for n, event in enumerate(log.events) if event.content.get("content") == "over"]
    assert ended < spoken
    rows = await rows_of(ctx)
    assert [row.content["content"] for row in rows if row.type == "assistant"] == [
        "I look. <look>a</look>", talker.text.removeprefix("I look. <look>a</look>"), "Done.",
    ]  # fmt: skip
    assert log.chunks == talker.text + "Done."
    assert statuses(log).count("finish") == 2
    again, retold = resumed(ctx)
    await run_agent(again)
    assert again.answers == ctx.answers == 2
    assert retold.kinds == ["complete", "finish"]


async def test_results_of_xml_calls_can_be_words_of_the_assistant(ctx: RunContext, fake: FakeModel) -> None:
    configure(ctx, xml_results_as="assistant")
    fake.script(fakes.says(xml("look")), fakes.says("Done."))
    await run_agent(ctx)
    assert await roles(ctx) == ["assistant/assistant", "tool/assistant", "assistant/assistant"]
    assert fake.requests[1].body["messages"][-1]["role"] == "assistant"


@pytest.mark.parametrize("native", [True, False], ids=["native", "xml"])
@pytest.mark.parametrize(("name", "made"), [("look", 2), ("act", 1)])
async def test_a_call_that_was_interrupted_is_made_again_only_if_that_does_no_harm(
    ctx: RunContext, fake: FakeModel, counting: Counting, native: bool, name: str, made: int
) -> None:
    counting.hold = asyncio.Event()
    first = acts(*tool_parts(0, name, "{}", "a")) if native else fakes.says(xml(name))
    fake.script(first, fakes.says("Done."))
    dying = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: bool(counting.calls))
    dying.cancel()
    await asyncio.wait({dying})
    counting.hold = None
    again, log = resumed(ctx)
    await run_agent(again)
    assert counting.calls == [name] * made
    [(status, told)] = await results(ctx)
    assert (status, told) == ("completed", told) if made == 2 else status == "failed"
    assert (tool_runner.INTERRUPTED in told) == (made == 1)
    assert len(fake.requests) == 2
    assert log.kinds[0] == "complete"
    assert again.usage == {name: 2 * tokens for name, tokens in USAGE.items()}


async def test_a_call_that_was_interrupted_is_told_as_such_when_its_tool_is_gone(
    ctx: RunContext, fake: FakeModel, counting: Counting
) -> None:
    counting.hold = asyncio.Event()
    fake.script(acts(*tool_parts(0, "act", "{}", "a")), fakes.says("Done."))
    dying = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: bool(counting.calls))
    dying.cancel()
    await asyncio.wait({dying})
    again, _ = resumed(ctx)
    again.tools = STANDARD
    await run_agent(again)
    [(status, told)] = await results(ctx)
    assert (status, told) == ("failed", tool_runner.INTERRUPTED)


async def test_a_stored_result_is_not_made_again_but_told_again(
    ctx: RunContext, fake: FakeModel, counting: Counting
) -> None:
    fake.script(acts(*tool_parts(0, "act", "{}", "a")), fakes.silent(), fakes.says("Done."))
    dying = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: len(fake.requests) == 2)
    dying.cancel()
    await asyncio.wait({dying})
    again, log = resumed(ctx)
    await run_agent(again)
    assert counting.calls == ["act"]
    assert statuses(log) == ["tool_completed act", "finish", "assistant_response_start", "finish"]
    assert await roles(ctx) == ["assistant/assistant", "tool/tool", "assistant/assistant"]


async def test_of_several_calls_only_those_without_a_result_are_settled(
    ctx: RunContext, fake: FakeModel, counting: Counting
) -> None:
    parts = [*tool_parts(0, "act", '{"text": "1"}', "a"), *tool_parts(1, "look", '{"text": "2"}', "b")]
    fake.script(acts(*parts), fakes.says("Done."))
    dying = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: "tool_completed act" in statuses(log_of(ctx)))
    dying.cancel()
    await asyncio.wait({dying})
    again, _ = resumed(ctx)
    await run_agent(again)
    assert counting.calls.count("act 1") == 1
    assert [status for status, _ in await results(ctx)] == ["completed", "completed"]


async def test_a_run_that_died_after_its_last_word_is_not_asked_again(ctx: RunContext, fake: FakeModel) -> None:
    fake.script(fakes.says("<ask>So?</ask>"))
    await run_agent(ctx)
    again, log = resumed(ctx)
    await run_agent(again)
    assert len(fake.requests) == 1
    assert log.events[-1].content["finish_reason"] == "agent_terminated"


async def test_a_stop_during_a_tool_is_not_waited_for_and_leaves_a_thread_that_can_go_on(
    ctx: RunContext, fake: FakeModel, counting: Counting, pool: Pool
) -> None:
    counting.hold = asyncio.Event()
    fake.script(acts(*tool_parts(0, "act", "{}", "a"), words="I act."))
    running = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: bool(counting.calls))
    running.cancel()
    async with asyncio.timeout(PATIENT):
        await asyncio.wait({running})
    await keep_draft(ctx)
    assert counting.at_once == 0
    assert await roles(ctx) == ["assistant/assistant"]
    async with pool.acquire() as conn:
        said = NewMessage("user", {"role": "user", "content": "Go on"})
        await messages.add(conn, ctx.run.thread_id, [said])
        await conn.execute("UPDATE messages SET agent_run_id = NULL WHERE thread_id = $1", ctx.run.thread_id)
    fake.script(fakes.says("Yes."))
    again, _ = resumed(ctx)
    await run_agent(again)
    shown = fake.requests[-1].body["messages"][2:]
    assert [said["role"] for said in shown] == ["assistant", "tool", "user"]
    assert shown[1]["content"] == "There is no result: the call was stopped before it ended."


async def test_a_model_that_takes_no_tools_is_told_of_them_in_its_prompt(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    here = settings.model_copy(update={"models": settings.models.model_copy(update={"ollama_base_url": fake.base_url})})
    ctx, _ = await make_context(pool, http, here, "ollama/m")
    fake.script(fakes.says("Hi."))
    await run_agent(ctx)
    asked = fake.requests[0].body
    assert "tools" not in asked
    assert '<invoke name="web_browser_takeover">' in asked["messages"][0]["content"]

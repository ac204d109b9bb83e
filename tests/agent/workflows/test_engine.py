"""The deterministic executor, step type by step type, on real rows."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from httpx2 import AsyncClient

from agent.context import RunFailed, RunParked
from agent.workflows import brief
from services.postgres import Pool
from services.settings import OutgoingSettings, Settings
from tests.agent.seeds import Counting, eventually
from tests.agent.workflows.seeds import World, make_world
from tests.agent.workflows.test_checking import definition, loop, parallel, step
from tests.fakes import FakeModel, refuses, says
from tests.sites import Page
from tests.sites import site as serve
from tests.waiting import PATIENT

Make = Callable[..., Awaitable[World]]


@pytest.fixture
def make(pool: Pool, http: AsyncClient, settings: Settings) -> Make:
    async def make(*steps: dict[str, Any], **named: Any) -> World:
        return await make_world(pool, http, settings, *steps, **named)

    return make


def transform(step_id: str, *next_steps: str, expression: str = "`1`", **sets: str) -> dict[str, Any]:
    return step(step_id, *next_steps, config={"expression": expression, "set": sets})


async def test_values_flow_from_inputs_through_steps(make: Make) -> None:
    variables = [{"name": "who", "type": "string"}, {"name": "times", "type": "integer", "default": 2}]
    world = await make(
        step("a", "b", type="INPUT", config={"variables": variables}),
        transform("b", "c", expression="join(' ', ['Hello', variables.who])", times="add(variables.times, `1`)"),
        transform("c", expression="{said: steps.b.output, times: variables.times, of: execution.workflow_name}"),
        variables={"who": "Ann"},
    )
    await world.run()
    assert await world.outputs() == {
        "a": {"who": "Ann", "times": 2},
        "b": "Hello Ann",
        "c": {"said": "Hello Ann", "times": 3, "of": "Garden"},
    }
    assert world.told == [
        "workflow_started",
        *(f"{kind} {name}" for name in "abc" for kind in ("started", "completed")),
        "workflow_completed",
    ]


@pytest.mark.parametrize(("count", "way"), [(3, ["many", "end"]), (1, ["few", "end"])])
async def test_a_condition_chooses_its_way_and_both_ways_meet_again(make: Make, count: int, way: list[str]) -> None:
    world = await make(
        step("a", "many", "few", type="CONDITION", config={"expression": "variables.count > `2`"}),
        transform("many", "end"),
        transform("few", "end"),
        transform("end"),
        variables={"count": count},
    )
    await world.run()
    assert list(await world.visits()) == ["a", *way]


async def test_a_loop_over_a_list_visits_its_body_for_each_item(make: Make) -> None:
    over = {"body": "x", "over": "variables.list", "collect": "steps.y.output"}
    world = await make(
        step("a", "end", type="LOOP", config=over),
        transform("x", "y", sum="add(variables.sum, item)"),
        transform("y", "a", expression="[index, item, variables.sum]"),
        transform("end", expression="variables.sum"),
        variables={"list": [5, 6, 7], "sum": 0},
    )
    await world.run()
    outputs = await world.outputs()
    assert outputs["a"] == {"iterations": 3, "results": [[0, 5, 5], [1, 6, 11], [2, 7, 18]]}
    assert outputs["end"] == 18
    assert list(outputs) == ["a", "x", "y", "x:1", "y:1", "x:2", "y:2", "end"]


async def test_a_loop_goes_on_while_its_condition_holds_and_not_for_ever(make: Make) -> None:
    def counting(most: int) -> list[dict[str, Any]]:
        config = {"body": "x", "while": "variables.n < `5`", "max_iterations": most}
        return [step("a", type="LOOP", config=config), transform("x", n="add(variables.n, `1`)")]

    world = await make(*counting(5), variables={"n": 0})
    await world.run()
    assert (await world.outputs())["a"]["iterations"] == 5
    bounded = await make(*counting(4), variables={"n": 0})
    with pytest.raises(RunFailed, match=r"Step a failed: .* still holds after 4 iterations"):
        await bounded.run()


async def test_a_loop_in_a_loop_has_visits_of_its_own(make: Make) -> None:
    world = await make(
        loop("a", "b"),
        step("b", "a", type="LOOP", config={"body": "x", "over": "item"}),
        transform("x", "b", expression="item"),
        variables={"list": [[1, 2], [3]]},
    )
    await world.run()
    outputs = await world.outputs()
    assert {name: value for name, value in outputs.items() if name.startswith("x")} == {
        "x:0.0": 1,
        "x:0.1": 2,
        "x:1.0": 3,
    }


async def test_branches_are_joined(make: Make) -> None:
    world = await make(
        parallel("a", ["x", "y"], "end"),
        transform("x", "x2", expression="'x'"),
        transform("x2"),
        transform("y", expression="'y'"),
        transform("end", expression="[steps.x.output, steps.y.output]"),
    )
    await world.run()
    assert (await world.outputs())["end"] == ["x", "y"]


async def test_no_more_branches_are_at_work_at_once_than_allowed(make: Make) -> None:
    counting = Counting()
    calls = [step(name, type="MCP_TOOL", config={"tool": "act", "arguments": {"text": name}}) for name in "bcdef"]
    config = {"branches": list("bcdef"), "max_concurrency": 2}
    world = await make(step("a", type="PARALLEL", config=config), *calls, tools=counting.registry)
    counting.hold = asyncio.Event()
    running = asyncio.create_task(world.run())
    await eventually(lambda: counting.at_once == 2)
    await asyncio.sleep(0.1)  # a third would come now
    counting.hold.set()
    await running
    assert counting.most_at_once == 2
    assert sorted(counting.calls) == [f"act {name}" for name in "bcdef"]


@pytest.mark.parametrize(("failure", "done"), [("first", []), ("all", ["act late"])])
async def test_the_first_failure_cancels_the_other_branches_or_lets_them_end(
    make: Make, failure: str, done: list[str]
) -> None:
    counting = Counting()
    world = await make(
        step("a", type="PARALLEL", config={"branches": ["bad", "good"], "failure": failure}, error_handler="end"),
        step("bad", type="MCP_TOOL", config={"tool": "refuse"}),
        step("good", "late", type="MCP_TOOL", config={"tool": "look", "arguments": {"text": "early"}}),
        step("late", type="MCP_TOOL", config={"tool": "act", "arguments": {"text": "late"}}),
        transform("end", expression="error"),
        tools=counting.registry,
    )
    if failure == "first":
        counting.hold = asyncio.Event()  # nothing but the failure ends the other branch
    async with asyncio.timeout(PATIENT):
        await world.run()
    assert counting.calls[1:] == done
    assert (await world.outputs())["end"] == {
        "step": "a",
        "message": "bad: Step bad failed: refuse: It cannot be done.",
    }


async def test_a_handler_takes_over_from_a_step_that_failed_and_without_one_the_execution_fails(make: Make) -> None:
    bad = transform("a", expression="add(variables.text, `1`)")
    handled = await make(
        {**bad, "error_handler": "b"}, transform("b", expression="error.step"), variables={"text": "x"}
    )
    await handled.run()
    assert (await handled.outputs())["b"] == "a"
    unhandled = await make(bad, variables={"text": "x"})
    with pytest.raises(RunFailed, match=r"Step a failed: add\(variables.text, `1`\) has no value"):
        await unhandled.run()
    assert unhandled.told[-1] == "workflow_failed"


async def test_a_webhook_is_sent_and_its_answer_read(make: Make) -> None:
    answer = Page(b'{"ok": [1]}', content_type="application/json")
    async with serve({"/hook": answer}) as site:
        config = {
            "url": site.url("/{{ variables.path }}"),
            "headers": {"X-Secret": "{{ variables.secret }}", "Host": "elsewhere"},
            "body": {"n": "{{ variables.n }}", "text": "n is {{ variables.n }}"},
        }
        world = await make(
            step("a", type="WEBHOOK", config=config), variables={"path": "hook", "n": 7, "secret": "s3cret"}
        )
        await world.run()
        (asked,) = site.asked
    headers = {name.lower(): value for name, value in asked.headers.items()}
    assert asked.body == b'{"n":7,"text":"n is 7"}'
    assert headers["x-secret"] == "s3cret"
    assert headers["idempotency-key"] == f"{world.execution_id}:a:0"
    assert headers["host"] != "elsewhere"
    visit = (await world.visits())["a"]
    assert visit.output == {"status": 200, "headers": {"content-type": "application/json"}, "body": {"ok": [1]}}
    assert "s3cret" not in str(visit.inputs)


@pytest.mark.parametrize("value", ["s3cret\nX: y", "s3cr\u00e9t", "s3cret\x7f"])
async def test_a_header_that_cannot_be_sent_is_named_and_not_shown(make: Make, value: str) -> None:
    async with serve({"/": Page()}) as site:
        config = {"url": site.url(), "headers": {"X-Key": "{{ variables.key }}"}}
        world = await make(step("a", type="WEBHOOK", config=config), variables={"key": value})
        with pytest.raises(RunFailed, match="X-Key") as failed:
            await world.run()
        assert site.asked == []
    assert "s3cr" not in str(failed.value)
    visit = (await world.visits())["a"]
    assert visit.tries == 1
    assert "s3cr" not in (visit.error or "")


async def test_a_header_is_sent_without_the_blanks_around_it(make: Make) -> None:
    async with serve({"/": Page()}) as site:
        config = {"url": site.url(), "headers": {"X-Key": "{{ variables.key }}"}}
        await (await make(step("a", type="WEBHOOK", config=config), variables={"key": " s3cret\r\n"})).run()
        (asked,) = site.asked
    assert asked.headers["x-key"] == "s3cret"


@pytest.mark.parametrize("charset", ["utf8mb4", "hex", "utf-7", "undefined", "raw_unicode_escape"])
async def test_an_answer_in_a_charset_that_nobody_knows_is_read_all_the_same(make: Make, charset: str) -> None:
    body = rb"fine +2AA- \ud800"
    async with serve({"/": Page(body, content_type=f"text/plain; charset={charset}")}) as site:
        world = await make(step("a", type="WEBHOOK", config={"url": site.url()}))
        await world.run()
    assert (await world.outputs())["a"]["body"].startswith("fine")


async def test_the_error_of_a_step_is_kept_whatever_a_server_says(make: Make) -> None:
    async with serve({"/": Page(b"no\x00 \xff", status=400)}) as site:
        config = {"url": site.url()}
        world = await make(
            step("a", type="WEBHOOK", config=config, error_handler="b"), transform("b", expression="error.message")
        )
        await world.run()
    assert "status 400: no" in (await world.outputs())["b"]


async def test_the_error_of_an_expression_is_kept_whatever_is_in_its_values(make: Make) -> None:
    world = await make(transform("a", expression="abs(parse_json(variables.x))"), variables={"x": '"\\u0000"'})
    with pytest.raises(RunFailed, match="has no value"):
        await world.run()


@pytest.mark.parametrize("until", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-12:00"])
async def test_a_time_at_the_edge_of_all_times_ends_the_step_or_its_wait(make: Make, until: str) -> None:
    world = await make(
        step("a", type="WAIT", config={"until": "{{ variables.until }}"}, error_handler="b"),
        transform("b"),
        variables={"until": until},
    )
    await world.run()
    assert "a" in await world.visits()


async def test_a_repeatable_webhook_is_retried_under_one_key(make: Make) -> None:
    async with serve({"/": Page(b"busy", status=503)}) as site:
        config = {"url": site.url(), "retries": 2, "retry_delay_seconds": 0, "repeatable": True}
        world = await make(step("a", type="WEBHOOK", config=config))
        with pytest.raises(RunFailed, match="Step a failed: The server answered with status 503: busy"):
            await world.run()
        keys = {each.headers["idempotency-key"] for each in site.asked}
    assert len(site.asked) == 3
    assert keys == {f"{world.execution_id}:a:0"}
    assert world.told == ["workflow_started", "started a", "retrying a", "retrying a", "failed a", "workflow_failed"]
    assert (await world.visits())["a"].tries == 3


async def test_a_webhook_that_is_not_repeatable_is_sent_again_only_if_it_cannot_have_arrived(make: Make) -> None:
    async with serve({"/": Page(b"busy", status=503)}) as site:
        arrived = await make(step("a", type="WEBHOOK", config={"url": site.url(), "retry_delay_seconds": 0}))
        with pytest.raises(RunFailed):
            await arrived.run()
        assert len(site.asked) == 1
        port = site.port
    config = {"url": f"http://127.0.0.1:{port}/", "retries": 2, "retry_delay_seconds": 0}
    refused = await make(step("a", type="WEBHOOK", config=config))
    with pytest.raises(RunFailed, match="could not be reached"):
        await refused.run()
    assert (await refused.visits())["a"].tries == 3


async def test_a_webhook_does_not_reach_the_private_network(pool: Pool, http: AsyncClient, settings: Settings) -> None:
    closed = settings.model_copy(update={"outgoing": OutgoingSettings()})
    async with serve({"/": Page()}) as site:
        world = await make_world(pool, http, closed, step("a", type="WEBHOOK", config={"url": site.url()}))
        with pytest.raises(RunFailed, match="is not on the public internet"):
            await world.run()
        assert site.asked == []


async def test_a_tool_is_called_with_rendered_arguments(make: Make) -> None:
    counting = Counting()
    config = {"tool": "act", "arguments": {"text": "{{ variables.who }}!"}}
    world = await make(step("a", type="MCP_TOOL", config=config), variables={"who": "Ann"}, tools=counting.registry)
    await world.run()
    assert counting.calls == ["act Ann!"]
    assert (await world.outputs())["a"] == {"text": "act Ann! done", "data": None}


async def test_a_tool_that_is_not_there_fails_its_step(make: Make) -> None:
    world = await make(step("a", type="MCP_TOOL", config={"server": "weather", "tool": "forecast"}))
    with pytest.raises(RunFailed, match="Step a failed: There is no tool mcp_weather_forecast here"):
        await world.run()


async def test_an_agent_answers_a_prompt_in_the_stream_and_its_tokens_are_counted(make: Make, fake: FakeModel) -> None:
    fake.script(says("Roses", " are red"), says("So it is"))
    world = await make(
        step("a", "b", type="AGENT", config={"prompt": "Tell of {{ variables.what }}"}),
        step("b", type="AGENT", config={"prompt": "Is it so: {{ steps.a.output.text }}?", "tools": []}),
        variables={"what": "roses"},
    )
    ctx = await world.run()
    assert (await world.outputs()) == {"a": {"text": "Roses are red"}, "b": {"text": "So it is"}}
    asked = [each["content"] for each in fake.requests[-1].body["messages"] if each["role"] == "user"]
    assert asked == ["Tell of roses", "Is it so: Roses are red?"]
    visits = await world.visits()
    assert visits["a"].usage["total_tokens"] == visits["b"].usage["total_tokens"] == 18
    assert ctx.usage["total_tokens"] == 36
    assert world.logs[-1].chunks == "Roses are redSo it is"


async def test_an_agent_whose_model_fails_fails_its_step_or_is_asked_again(make: Make, fake: FakeModel) -> None:
    fake.script(refuses(400, "no such thing"), refuses(400, "no such thing"), says("Well then"))
    failing = await make(step("a", type="AGENT", config={"prompt": "Hi"}))
    with pytest.raises(RunFailed, match="Step a failed: "):
        await failing.run()
    world = await make(step("a", type="AGENT", config={"prompt": "Hi", "retries": 1, "retry_delay_seconds": 0}))
    await world.run()
    assert (await world.outputs())["a"] == {"text": "Well then"}


async def test_agents_side_by_side_take_turns(make: Make, fake: FakeModel) -> None:
    fake.script(says("one"), says("two"))
    asking = [step(name, type="AGENT", config={"prompt": name}) for name in ("x", "y")]
    world = await make(parallel("a", ["x", "y"]), *asking)
    await world.run()
    assert sorted(each["text"] for name, each in (await world.outputs()).items() if name in "xy") == ["one", "two"]


async def test_a_wait_parks_the_run_and_is_over_when_its_time_has_come(make: Make, pool: Pool) -> None:
    world = await make(
        step("a", "b", type="WAIT", config={"seconds": "{{ variables.s }}"}), transform("b"), variables={"s": 3600}
    )
    with pytest.raises(RunParked) as parked:
        await world.run()
    visit = (await world.visits())["a"]
    assert visit.wake_at == parked.value.until
    assert (visit.wake_at - visit.started_at).total_seconds() == pytest.approx(3600, abs=1)
    with pytest.raises(RunParked):
        await world.run()
    assert world.told == ["waiting a"]
    await pool.execute("UPDATE workflow_steps SET wake_at = wake_at - interval '1 hour'")
    await world.run()
    assert world.told == ["completed a", "started b", "completed b", "workflow_completed"]


async def test_a_wait_until_a_time_that_has_passed_is_over_at_once(make: Make) -> None:
    world = await make(step("a", type="WAIT", config={"until": "2020-01-01T00:00:00Z"}))
    await world.run()
    assert (await world.outputs())["a"] == {"until": "2020-01-01T00:00:00+00:00"}


@pytest.mark.parametrize("until", ["'yesterday'", "'9999-01-01'"])
async def test_a_time_that_is_none_or_too_far_fails_the_step(make: Make, until: str) -> None:
    world = await make(step("a", type="WAIT", config={"until": f"{{{{ {until} }}}}"}))
    with pytest.raises(RunFailed, match="Step a failed"):
        await world.run()


async def test_a_branch_that_waits_lets_the_others_end_first(make: Make, pool: Pool) -> None:
    world = await make(
        parallel("a", ["x", "y"], "end"),
        step("x", type="WAIT", config={"seconds": 3600}),
        transform("y", "y2"),
        transform("y2"),
        transform("end"),
    )
    with pytest.raises(RunParked):
        await world.run()
    assert [name for name, each in (await world.visits()).items() if each.status == "completed"] == ["y", "y2"]
    await pool.execute("UPDATE workflow_steps SET wake_at = now() WHERE wake_at IS NOT NULL")
    await world.run()
    assert {each.status for each in (await world.visits()).values()} == {"completed"}


async def test_work_is_limited_in_time_and_waiting_is_no_work(make: Make, pool: Pool) -> None:
    world = await make(transform("a"), max_execution_time=60)
    await pool.execute(
        "UPDATE agent_runs SET started_at = now() - interval '2 hours', waited = '1 hour 59 minutes 30 seconds'"
    )
    await world.run()
    late = await make(transform("a"), max_execution_time=60)
    await pool.execute("UPDATE agent_runs SET started_at = now() - interval '2 minutes', waited = '0'")
    with pytest.raises(RunFailed, match="it worked for longer than 60 seconds"):
        await late.run()


async def test_what_an_execution_holds_is_limited(make: Make) -> None:
    text = "x" * 200_000
    config = {"body": "x", "over": "[`1`,`2`,`3`,`4`,`5`,`6`,`7`,`8`,`9`,`10`,`11`,`12`]"}
    sets = {f"v{n}": "variables.text" for n in range(1)}
    many = await make(
        step("a", type="LOOP", config=config),
        transform("x", "a", expression="variables.text", **sets),
        variables={"text": text},
    )
    await many.run()
    wide = await make(
        *(transform(f"s{n}", f"s{n + 1}", expression="variables.text") for n in range(12)),
        transform("s12"),
        variables={"text": text},
    )
    with pytest.raises(RunFailed, match="more than 2,097,152 bytes together"):
        await wide.run()


async def test_an_execution_that_is_not_deterministic_is_a_run_of_the_agent_over_its_brief(
    make: Make, fake: FakeModel
) -> None:
    fake.script(says("Done"))
    world = await make(transform("a"), deterministic=False)
    await world.run()
    assert world.told == ["workflow_started", "workflow_completed"]
    assert await world.visits() == {}


def test_a_brief_tells_no_header_that_is_written_out_in_the_definition() -> None:
    headers = {"Authorization": "Bearer s3cret", "X-Who": "{{ variables.who }}", "Content-Type": "text/plain"}
    asking = step("a", type="WEBHOOK", config={"url": "http://a/", "headers": headers})
    told = brief.brief("Garden", "", definition(asking), {"who": "Ann"}).content["content"]
    assert "s3cret" not in told
    assert "Authorization" in told
    assert "{{ variables.who }}" in told
    assert "text/plain" in told

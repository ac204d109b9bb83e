"""The tool that makes a schedule for the agent that a run builds."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import orjson
import pytest
from httpx2 import AsyncClient

from agent import loop, tool_runner
from agent.context import Calling, RunContext
from agent.tools.base import ToolResult
from services import agents, threads
from services.agents import Agent
from services.postgres import Pool, transaction
from services.runs.fence import FenceLost
from services.schedules import store
from services.schedules.store import Schedule
from services.settings import ScheduleSettings, Settings
from tests import fakes
from tests.agent.seeds import acts, calling, make_context, resumed, rows_of, tool_parts
from tests.agent.tools.test_builder import make_builder
from tests.fakes import FakeModel

Built = tuple[RunContext, Agent]

WATERING = {
    "name": "Watering",
    "prompt": "Water the roses",
    "cron_expression": "0  9 * * MON-FRI",
    "timezone": "Europe/Berlin",
}


@pytest.fixture
async def run(pool: Pool, http: AsyncClient, settings: Settings) -> Built:
    ctx, _, target = await make_builder(pool, http, settings)
    return ctx, target


async def plan(made: Calling, **arguments: Any) -> ToolResult:
    """What comes of a call with these arguments beside those of WATERING; None leaves one out."""
    given = {name: value for name, value in {**WATERING, **arguments}.items() if value is not None}
    call = replace(made.call, name="create_schedule", arguments=orjson.dumps(given).decode())
    return await tool_runner.run(replace(made, call=call))


async def schedules(ctx: RunContext) -> list[Schedule]:
    found, _ = await store.page(ctx.pool, ctx.run.account_id, workflow_id=None, limit=10, offset=0)
    return found


async def projects(ctx: RunContext) -> int:
    """How many the account has: that of the conversation, and those of schedules."""
    count: int = await ctx.pool.fetchval("SELECT count(*) FROM projects WHERE account_id = $1", ctx.run.account_id)
    return count


async def test_a_conversation_has_its_agent_work_at_set_times(run: Built, fake: FakeModel) -> None:
    ctx, target = run
    asked = orjson.dumps(WATERING).decode()
    fake.script(acts(*tool_parts(0, "create_schedule", asked)), fakes.says("<complete>Done</complete>"))
    await loop.run_agent(ctx)
    [made] = await schedules(ctx)
    assert (made.name, made.prompt, made.agent_id) == ("Watering", "Water the roses", target.agent_id)
    assert made.config["advanced"]["cron_expression"] == "0 9 * * MON-FRI"
    assert (made.status, made.workflow_id, made.execution_count) == ("active", None, 0)
    assert made.next_fire_at == made.timetable.after(datetime.now(UTC))
    (result, *_) = [row.content["content"] for row in await rows_of(ctx) if row.type == "tool"]
    assert result == (
        "The schedule Watering was made: At 09:00 on Monday through Friday (Europe/Berlin). "
        f"Its id is {made.schedule_id}, its thread {made.thread_id}."
    )


async def test_it_works_in_a_conversation_of_its_own_unless_this_one_is_asked_for(run: Built) -> None:
    ctx, _ = run
    assert (await plan(calling(ctx), timezone=None)).success
    assert (await plan(calling(ctx), new_thread=False)).success
    here, apart = await schedules(ctx)
    assert here.thread_id == ctx.run.thread_id
    assert apart.thread_id
    assert apart.thread_id != ctx.run.thread_id
    assert apart.config["advanced"]["timezone"] == "UTC"
    async with ctx.pool.acquire() as conn:
        thread = await threads.writable(conn, ctx.run.account_id, apart.thread_id)
    assert thread.project_id != ctx.run.project_id
    assert thread.metadata["title"] == "Watering"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cron_expression": "0 9 * *"}, "cron_expression: Value error, a cron expression has 5 fields"),
        ({"cron_expression": "61 9 * * *"}, "cron_expression: Value error, is no cron expression"),
        ({"cron_expression": "0 0 */31 2 1#5"}, "does not fire within the next ten years"),
        ({"cron_expression": None}, "cron_expression: Field required"),
        ({"timezone": "Europe/Atlantis"}, "'Europe/Atlantis' is no IANA time zone"),
        ({"timezone": "../../etc/passwd"}, "is no IANA time zone"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt: Value error, must not be blank"),
        ({"prompt": "half \x00"}, "U+0000"),
        ({"prompt": "x" * 100_001}, "prompt"),
        ({"name": " "}, "name"),
        ({"agent_id": str(uuid4())}, "agent_id"),
    ],
)
async def test_what_cannot_be_is_told_to_the_model_and_makes_nothing(
    run: Built, arguments: dict[str, Any], words: str
) -> None:
    ctx, _ = run
    result = await plan(calling(ctx), **arguments)
    assert (result.success, result.error) == (False, False)
    assert words in result.output
    assert await schedules(ctx) == []
    assert await projects(ctx) == 1, "no project without its schedule"


async def test_an_account_that_has_as_many_as_it_may_gets_no_other(run: Built, settings: Settings) -> None:
    ctx, _ = run
    ctx.settings = settings.model_copy(update={"schedules": ScheduleSettings(max_per_account=1)})
    assert (await plan(calling(ctx))).success
    result = await plan(calling(ctx))
    assert result.output == "This account may have no more schedules: it has 1."
    assert not result.success
    assert len(await schedules(ctx)) == 1
    assert await projects(ctx) == 2


async def test_an_agent_of_another_account_gets_no_schedule(run: Built, http: AsyncClient, settings: Settings) -> None:
    ctx, _ = run
    stranger, _ = await make_context(ctx.pool, http, settings, "openai/m")
    stranger.run = replace(stranger.run, settings=ctx.run.settings)
    stranger.tools = ctx.tools
    result = await plan(calling(stranger))
    assert (result.success, "was deleted" in result.output) == (False, True)
    assert await schedules(stranger) == await schedules(ctx) == []


async def test_an_agent_that_was_deleted_meanwhile_gets_no_schedule(run: Built) -> None:
    ctx, target = run
    async with transaction(ctx.pool) as conn:
        await agents.delete(conn, ctx.run.account_id, target.agent_id)
    assert "was deleted" in (await plan(calling(ctx))).output
    assert await schedules(ctx) == []


async def test_a_call_that_is_made_again_after_a_crash_makes_no_second_schedule(run: Built, fake: FakeModel) -> None:
    ctx, _ = run
    asked = orjson.dumps(WATERING).decode()
    fake.script(acts(*tool_parts(0, "create_schedule", asked)), fakes.says("<complete>Done</complete>"))

    async def die(*arguments: Any) -> None:
        raise ConnectionAbortedError

    with patch.object(tool_runner, "keep", die), pytest.raises(ConnectionAbortedError):
        await loop.run_agent(ctx)
    [made] = await schedules(ctx)
    again, _ = resumed(ctx)
    await loop.run_agent(again)
    assert await schedules(ctx) == [made]
    assert await projects(ctx) == 2
    (result, *_) = [row.content["content"] for row in await rows_of(ctx) if row.type == "tool"]
    assert str(made.schedule_id) in result


async def test_two_calls_of_one_answer_make_two_schedules(run: Built, fake: FakeModel) -> None:
    ctx, _ = run
    calls = [
        part
        for index, name in enumerate(("Morning", "Evening"))
        for part in tool_parts(index, "create_schedule", orjson.dumps({**WATERING, "name": name}).decode())
    ]
    fake.script(acts(*calls), fakes.says("<complete>Done</complete>"))
    await loop.run_agent(ctx)
    assert {made.name for made in await schedules(ctx)} == {"Morning", "Evening"}


async def test_a_run_that_another_worker_took_over_makes_no_schedule(run: Built) -> None:
    ctx, _ = run
    await ctx.pool.execute("UPDATE agent_runs SET attempt = attempt + 1 WHERE id = $1", ctx.run.id)
    with pytest.raises(FenceLost):
        await plan(calling(ctx))
    assert await schedules(ctx) == []

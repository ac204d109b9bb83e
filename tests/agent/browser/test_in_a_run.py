"""What the model of a run is shown of the browser, turn by turn."""

import orjson
import pytest

from agent.context import RunContext
from agent.loop import run_agent
from services.sandbox.protocol import Sandbox
from tests.agent.browser.conftest import serve
from tests.agent.seeds import acts, model_settings, rows_of, tool_parts
from tests.fakes import FakeModel, says

pytestmark = pytest.mark.usefixtures("well")


async def test_each_turn_sees_the_browser_as_it_stands_and_no_picture_of_before(
    ctx: RunContext, sandbox: Sandbox, fake: FakeModel
) -> None:
    ctx.settings = model_settings(fake, idle_timeout="60s")
    url = await serve(sandbox, "first", "<button onclick=\"document.body.style.background='red'\">Paint</button>")
    fake.script(
        acts(*tool_parts(0, "browser_navigate_to", orjson.dumps({"url": url}).decode())),
        acts(*tool_parts(0, "browser_click_element", '{"index": 0}')),
        says("Painted."),
    )
    await run_agent(ctx)
    rows = await ctx.pool.fetch(
        "SELECT message_id, content FROM messages WHERE thread_id = $1 AND type = 'browser_state' ORDER BY position",
        ctx.run.thread_id,
    )
    pictures = [row["content"]["screenshot_base64"] for row in rows]
    assert len(set(pictures)) == 2
    bodies = [orjson.dumps(request.body).decode() for request in fake.requests]
    assert [[picture in body for picture in pictures] for body in bodies] == [
        [False, False],
        [True, False],
        [False, True],
    ]
    assert "[0]<button>Paint</button>" in bodies[1]
    results = [orjson.loads(row.content["content"]) for row in await rows_of(ctx) if row.type == "tool"]
    assert [result["message_id"] for result in results] == [str(row["message_id"]) for row in rows]
    assert all(result["success"] for result in results)

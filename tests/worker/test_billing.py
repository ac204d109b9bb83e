"""A run that the billing gate stops."""

from dataclasses import replace

import orjson
import pytest

from services.billing.calls import ModelCall
from services.billing.gate import Verdict
from services.billing.local import LocalGate
from services.postgres import Executor
from services.runs.fence import Fence
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import acts, model_settings, tool_parts
from tests.fakes import FakeModel
from tests.services.runs.seeds import closed, kinds, listed, make_run
from tests.worker.test_runner import drive
from worker.process import Process

REASON = "The budget of this account is used up."


class Counted(LocalGate):
    """A gate that lets so many model calls pass."""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    async def reserve(self, conn: Executor, fence: Fence, call: ModelCall) -> Verdict:
        self.passes -= 1
        return Verdict(self.passes >= 0, REASON)


@pytest.mark.parametrize("passes", [0, 1, 2])
async def test_a_run_that_may_not_go_on_ends_stopped_with_the_reason(
    process: Process, settings: Settings, passes: int
) -> None:
    with FakeModel() as fake:
        fake.script(*(acts(*tool_parts(0, "task_list", '{"tasks": []}', f"c{n}"), words="Hm") for n in range(5)))
        models = model_settings(fake).models
        limited = replace(process, settings=settings.model_copy(update={"models": models}), gate=Counted(passes))
        run = await make_run(process.stores.pool, model="openai/m")
        row = await drive(limited, run)
        assert len(fake.requests) == passes
    assert (row.status, row.error) == ("stopped", REASON)
    await closed(process.stores.pool, run.id)
    log = await listed(process.stores, run.id)
    assert orjson.loads(log[-1]) == {"type": "status", "status": "stopped", "message": REASON}
    words = kinds(log)
    assert words[-2:] == ["thread_run_end", "last:stopped"]
    assert words.count("tool_completed") == passes, "what was done before stays"


async def test_a_run_that_may_go_on_is_asked_about_before_each_model_call(process: Process, settings: Settings) -> None:
    gate = Counted(10)
    with FakeModel() as fake:
        fake.script(acts(*tool_parts(0, "task_list", '{"tasks": []}')), fakes.says("Done."))
        models = model_settings(fake).models
        asked = replace(process, settings=settings.model_copy(update={"models": models}), gate=gate)
        row = await drive(asked, await make_run(process.stores.pool, model="openai/m"))
    assert (row.status, gate.passes) == ("completed", 8)

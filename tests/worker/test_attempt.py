from dataclasses import replace

from agent.context import AgentConfig
from services.settings import AgentSettings, Settings
from tests.agent.seeds import acts, model_settings, tool_parts
from tests.fakes import FakeModel
from tests.services.runs.seeds import make_run
from tests.worker.test_runner import drive
from worker.process import Process


def test_the_defaults_of_the_settings_are_those_of_the_agent() -> None:
    assert AgentConfig.of(AgentSettings()) == AgentConfig()


async def test_a_run_works_as_the_settings_say(process: Process, settings: Settings) -> None:
    with FakeModel() as fake:
        fake.script(*(acts(*tool_parts(0, "task_list", '{"tasks": []}', f"c{n}")) for n in range(5)))
        changes = {"models": model_settings(fake).models, "agent": AgentSettings(max_iterations=2)}
        limited = replace(process, settings=settings.model_copy(update=changes))
        row = await drive(limited, await make_run(process.stores.pool, model="openai/m"))
        assert len(fake.requests) == 2
    assert row.status == "completed"

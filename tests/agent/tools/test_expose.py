import pytest

from agent.context import RunContext
from agent.tools import expose, shell
from agent.tools.base import BadArguments, ToolFailed
from services import previews
from services.previews import Preview
from services.sandbox.protocol import SandboxFailed
from services.settings import PreviewSettings, Settings
from tests.agent.tools.conftest import use


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"previews": PreviewSettings(url="http://{label}.previews.test/")})


async def test_a_port_on_which_a_server_answers_gets_an_address(ctx: RunContext) -> None:
    with pytest.raises(SandboxFailed, match="8123"):
        await use(ctx, expose.expose_port, port=8123)
    await use(ctx, shell.start_command, session_name="web", command="python3 -u -m http.server 8123")
    await use(ctx, shell.check_command_output, session_name="web", wait_seconds=10)
    told = await use(ctx, expose.expose_port, port=8123)
    host = told.removeprefix("Port 8123 is shown at http://").removesuffix("/")
    assert previews.read(ctx.settings, host) == Preview(ctx.run.project_id, 8123)


async def test_without_an_address_for_previews_nothing_is_exposed(ctx: RunContext) -> None:
    ctx.settings = ctx.settings.model_copy(update={"previews": PreviewSettings(url="")})
    with pytest.raises(ToolFailed, match="no previews"):
        await use(ctx, expose.expose_port, port=8123)


@pytest.mark.parametrize("port", [0, 65536, "eighty"])
async def test_what_is_no_port_is_refused(ctx: RunContext, port: object) -> None:
    with pytest.raises(BadArguments, match="port"):
        await use(ctx, expose.expose_port, port=port)

import asyncio
import io
import os
from pathlib import Path
from uuid import uuid4

import pytest

from services.embedded import chromium, debian, sandboxes
from services.embedded.console import Console, EmbeddedError
from services.embedded.environment import Given
from services.embedded.state import State
from services.sandbox import places
from services.sandbox.bubblewrap import Bubblewrap
from services.settings import SandboxSettings
from tests.conftest import named
from tests.services.embedded.conftest import Dev

START = """
import asyncio, uuid
from services.sandbox.providers import make_provider
from services.settings import SandboxSettings

async def main():
    sandbox = await make_provider(SandboxSettings()).open(uuid.uuid4())
    await sandbox.start_job("long", "sleep 100")

asyncio.run(main())
"""


async def test_the_machines_bubblewrap_or_debians_is_named_with_the_folder(state: State) -> None:
    names = await sandboxes.prepare(Console(io.StringIO()), state, Given())
    assert os.access(names["SANDBOX_BWRAP"], os.X_OK)
    assert names["SANDBOX_DIR"] == str(state.folder / "sandboxes")


async def test_what_the_environment_names_is_left_alone(state: State) -> None:
    given = Given(sandbox_dir="/elsewhere", sandbox_bwrap="/my/bwrap", sandbox_browser="/my/browser")
    names = await sandboxes.prepare(Console(io.StringIO()), state, given)
    assert names == {"SANDBOX_DIR": "/elsewhere", "SANDBOX_BWRAP": "/my/bwrap", "SANDBOX_BROWSER": "/my/browser"}


async def test_slirp4netns_is_named_where_a_network_may_be_asked_for(state: State) -> None:
    given = Given(sandbox_bwrap="/my/bwrap", sandbox_network=True)
    names = await sandboxes.prepare(Console(io.StringIO()), state, given)
    assert os.access(names["SANDBOX_SLIRP"], os.X_OK)


async def test_a_failed_download_is_said_and_stops_nothing(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unpack(*_: object, **__: object) -> Path:
        raise EmbeddedError("no network")

    monkeypatch.setattr(sandboxes, "installed", lambda: "")
    monkeypatch.setattr(debian, "unpack", unpack)
    monkeypatch.setattr(chromium, "ON_THE_MACHINE", ())
    said = io.StringIO()
    names = await sandboxes.prepare(Console(said), state, Given())
    assert not {"SANDBOX_BWRAP", "SANDBOX_BROWSER"} & names.keys()
    assert "refused: no network" in said.getvalue()
    assert "none with a browser: no network" in said.getvalue()


def test_a_package_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EmbeddedError, match="bubblewrap is not installed here"):
        debian.require_apt("bubblewrap")


async def test_the_sandboxes_of_a_state_folder_end_with_it_and_keep_their_files(state: State) -> None:
    names = await sandboxes.prepare(Console(io.StringIO()), state, Given())
    provider = Bubblewrap(SandboxSettings(folder=names["SANDBOX_DIR"], bwrap=names["SANDBOX_BWRAP"]))
    project_id = uuid4()
    await (await provider.open(project_id)).write_file("kept", b"yes")
    place = places.of(provider.root, project_id)
    assert place.monitor()
    await asyncio.to_thread(sandboxes.end_all, state)
    assert place.monitor() is None
    assert (place.workspace / "kept").read_bytes() == b"yes"


async def test_a_sandbox_that_a_command_beside_the_stores_started_does_not_outlive_dev(dev: Dev, folder: Path) -> None:
    given = {name: named(name) for name in ("DATABASE_URL", "REDIS_URL")}
    process = dev("with-services", "--state", folder / "state", "--", "python", "-c", START, **given)
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, output
    (place,) = places.all_in(folder / "state" / "sandboxes").values()
    assert place.folder.is_dir()
    assert place.monitor() is None

"""The embedded PostgreSQL."""

import os
from pathlib import Path

import asyncpg
import pytest

from services.embedded import postgres
from services.embedded.console import EmbeddedError
from services.embedded.state import State, open_state, remove_data
from services.embedded.supervisor import Supervisor

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user")


async def fetch(state: State, query: str) -> object:
    conn = await asyncpg.connect(postgres.url(state.port("postgres"), state.password))
    try:
        return await conn.fetchval(query)
    finally:
        await conn.close()


async def test_it_starts_whoever_we_are_and_holds_our_database(supervisor: Supervisor, state: State) -> None:
    await supervisor.start(await postgres.prepare(state))
    assert await fetch(state, "SELECT current_database()") == "longrun"
    assert await fetch(state, "SHOW listen_addresses") == "127.0.0.1"
    assert await fetch(state, "SELECT upper('ä')") == "Ä"


async def test_it_asks_for_the_password(supervisor: Supervisor, state: State) -> None:
    await supervisor.start(await postgres.prepare(state))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.url(state.port("postgres"), "wrong"))


async def test_data_and_port_survive_a_restart(supervisor: Supervisor, state: State) -> None:
    await supervisor.start(await postgres.prepare(state))
    await fetch(state, "CREATE TABLE kept AS SELECT 42 AS answer")
    port = state.port("postgres")
    await supervisor.stop_all()
    await supervisor.start(await postgres.prepare(state))
    assert state.port("postgres") == port
    assert await fetch(state, "SELECT answer FROM kept") == 42


async def test_a_half_made_cluster_is_made_again(supervisor: Supervisor, state: State) -> None:
    (state.folder / "postgres.new" / "base").mkdir(parents=True)
    await supervisor.start(await postgres.prepare(state))
    assert await fetch(state, "SELECT 1") == 1


async def test_moving_the_state_folder_keeps_the_data(supervisor: Supervisor, folder: Path) -> None:
    first = open_state(folder / "before")
    await supervisor.start(await postgres.prepare(first))
    await fetch(first, "CREATE TABLE kept AS SELECT 42 AS answer")
    await supervisor.stop_all()
    first.close()
    second = open_state((folder / "before").rename(folder / "after"))
    await supervisor.start(await postgres.prepare(second))
    assert await fetch(second, "SELECT answer FROM kept") == 42
    second.close()


@root_only
async def test_root_starts_it_as_another_user(supervisor: Supervisor, state: State) -> None:
    spec = await postgres.prepare(state)
    await supervisor.start(spec)
    assert spec.user is not None
    assert (state.folder / "postgres").stat().st_uid == spec.user.pw_uid != 0


@root_only
async def test_data_lies_outside_a_folder_that_its_user_cannot_enter(supervisor: Supervisor, folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    state = open_state(closed / "state")
    await supervisor.start(await postgres.prepare(state))
    assert await fetch(state, "SELECT 1") == 1
    assert state.outside
    assert (state.outside / "postgres" / "PG_VERSION").exists()
    await supervisor.stop_all()
    outside = state.outside
    remove_data(state.folder)
    assert not outside.exists()
    state.close()


@root_only
async def test_a_user_that_cannot_reach_the_wheel_gets_a_copy_of_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(postgres, "OUTSIDE", folder / "outside")
    monkeypatch.setattr(postgres, "reaches", lambda *_: False)
    binaries = postgres.reachable_binaries(postgres.unprivileged_user())
    assert binaries.is_relative_to(folder / "outside")
    assert {"postgres", "initdb"} <= {path.name for path in binaries.iterdir()}
    assert postgres.reachable_binaries(postgres.unprivileged_user()) == binaries


async def test_a_start_that_fails_says_why(supervisor: Supervisor, state: State) -> None:
    spec = await postgres.prepare(state)
    (state.folder / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedError, match="postgres ended while it started") as failure:
        await supervisor.start(spec)
    assert "pg_control" in str(failure.value)

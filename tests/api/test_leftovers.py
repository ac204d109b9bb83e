"""Of what is deleted nothing is left: no row, no key in Redis, no sandbox, whoever dies meanwhile."""

import asyncio
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from api.app import create_app
from services import removals
from services.cache import MARK
from services.postgres import Pool
from services.runs import keys
from services.runs.stores import Stores
from services.sandbox.protocol import SandboxProvider, SandboxUnavailable
from services.sandbox.reaper import remove_leftovers
from services.settings import Settings
from tests.acceptance.client import until
from tests.api.conftest import Person
from tests.api.world import Things, things_of
from tests.waiting import PATIENT

TABLES = (
    "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    named = settings.sandbox.model_copy(update={"folder": str(tmp_path / "sandboxes")})
    return settings.model_copy(update={"sandbox": named})


async def naming(pool: Pool, ids: list[str]) -> set[str]:
    """The tables with a row that says one of the ids, in whatever column."""
    found = set()
    for (table,) in await pool.fetch(TABLES):
        said = f"SELECT EXISTS (SELECT FROM {table} AS row WHERE row::text ~ $1)"
        if await pool.fetchval(said, "|".join(ids)):
            found.add(table)
    return found


async def keys_naming(redis: Redis, ids: list[str]) -> list[str]:
    """But for how often somebody asked in the last minute, and for word that something known of them is void."""
    keys = [key.decode() async for key in redis.scan_iter(count=1000)]
    named = [key for key in keys if any(each in key for each in ids) and not key.startswith("rate_limit:")]
    return [key for key in named if not (key.startswith("cache:") and await redis.hkeys(key) == [MARK.encode()])]


async def all_of(person: Person, account_id: str, folder: Path) -> tuple[Things, list[str]]:
    """One thing of every kind in the account, and the ids of all of them."""
    person.headers["X-Account-Id"] = account_id
    things = await things_of(person)
    files = {"files": ("notes.txt", b"hi")}
    form = {"prompt": "hi", "model_name": "demo/echo"}
    initiated = await person.post("/agent/initiate", data=form, files=files, headers={"Idempotency-Key": "once"})
    more: dict[str, str] = initiated.raise_for_status().json()
    for project_id in (things.project_id, more["project_id"]):
        written = await person.post(f"/sandboxes/{project_id}/files", files={"file": ("notes.txt", b"hi")})
        written.raise_for_status()
        assert (folder / project_id).exists()
    named = {name: each for name, each in things.ids.items() if name not in ("account_id", "user_id")}
    return things, [*named.values(), *more.values()]


FILLED = {
    "projects", "threads", "messages", "agents", "agent_versions", "agent_runs", "agent_run_event_blocks", "uploads",
    "api_keys", "idempotency_keys", "accounts", "account_members",
}  # fmt: skip


@pytest.mark.parametrize("what", ["account", "project"])
async def test_nothing_is_left_of_what_is_deleted(
    app: FastAPI, ann: Person, stores: Stores, sandboxes: SandboxProvider, redis: Redis, tmp_path: Path, what: str
) -> None:
    folder, pool = tmp_path / "sandboxes", stores.pool
    account_id = (await ann.post("/accounts", json={"name": "Team"})).json()["account_id"]
    things, ids = await all_of(ann, account_id, folder)
    (await ann.post(f"/agent-run/{things.run_id}/stop")).raise_for_status()
    await ann.get(f"/agent-run/{things.run_id}/stream")  # to its end
    await until(lambda: naming_all(pool, [account_id, *ids]))
    assert await keys_naming(redis, ids)
    if what == "account":
        deleted, path = [account_id, *ids], f"/accounts/{account_id}"
    else:
        deleted = [things.project_id, things.thread_id, things.run_id, things.message_id]
        path = f"/projects/{things.project_id}"
    (await ann.delete(path)).raise_for_status()
    assert await naming(pool, deleted) == {"removals"}, "only what is still to be done"

    async def no_key_is_left() -> bool:
        await remove_leftovers(sandboxes, stores)
        return not await keys_naming(redis, deleted)

    await until(no_key_is_left)
    await pool.execute("UPDATE removals SET noted_at = noted_at - interval '2 hours'")
    await remove_leftovers(sandboxes, stores)
    assert await naming(pool, deleted) == set()
    assert [each for each in folder.iterdir() if any(id in each.name for id in deleted)] == []
    if what == "project":
        assert (await naming(pool, ids)) >= FILLED - {"accounts", "account_members", "agent_run_event_blocks"}


async def naming_all(pool: Pool, ids: list[str]) -> bool:
    """So that what is looked for can be found."""
    return await naming(pool, ids) >= FILLED


class Dying:
    """Where the process that deletes a sandbox dies before it has."""

    def __init__(self, real: SandboxProvider) -> None:
        self.real = real
        self.asked = asyncio.Event()

    async def open(self, project_id: UUID) -> object:
        return await self.real.open(project_id)

    async def delete(self, project_id: UUID) -> None:
        self.asked.set()
        await asyncio.Event().wait()


async def put_file(app: FastAPI, ann: Person, folder: Path) -> tuple[str, Path]:
    """A project whose sandbox has a file, and the sandbox's folder."""
    _, project_id = await ann.make_thread()
    answer = await ann.post(f"/sandboxes/{project_id}/files", files={"file": ("notes.txt", b"hi")})
    answer.raise_for_status()
    place = folder / project_id
    assert (place / "workspace" / "notes.txt").exists()
    return project_id, place


async def test_the_sandbox_of_a_project_goes_even_if_the_api_that_deletes_it_dies(
    settings: Settings, stores: Stores, sandboxes: SandboxProvider, tmp_path: Path
) -> None:
    folder, app = tmp_path / "sandboxes", create_app(settings)
    async with app.router.lifespan_context(app), Person(app, settings) as ann:
        dying = Dying(app.state.resources.sandboxes)
        project_id, place = await put_file(app, ann, folder)
        object.__setattr__(app.state.resources, "sandboxes", dying)
        (await ann.delete(f"/projects/{project_id}")).raise_for_status()
        await asyncio.wait_for(dying.asked.wait(), PATIENT)
    assert place.exists()
    await remove_leftovers(sandboxes, stores)
    assert not place.exists()
    place.mkdir()  # by a worker that has not heard yet
    await remove_leftovers(sandboxes, stores)
    assert not place.exists()


class Away:
    def __init__(self) -> None:
        self.deleted = list[UUID]()

    async def delete(self, project_id: UUID) -> None:
        if not self.deleted:
            self.deleted.append(project_id)
            raise SandboxUnavailable("No sandbox: the engine is away.")
        self.deleted.append(project_id)


async def noted_projects(pool: Pool) -> list[UUID | None]:
    return [removal.project_id async for removal in removals.noted(pool)]


async def test_what_cannot_be_removed_now_stays_noted_and_stops_no_other(stores: Stores) -> None:
    first, second = uuid4(), uuid4()
    old = timedelta(hours=2)
    for project_id in (first, second):
        statement = "INSERT INTO removals (project_id, run_ids, noted_at) VALUES ($1, '{}', now() - $2::interval)"
        await stores.pool.execute(statement, project_id, old)
    provider = Away()
    await remove_leftovers(provider, stores)  # type: ignore[arg-type]
    assert provider.deleted == [first, second]
    assert await noted_projects(stores.pool) == [first]
    await remove_leftovers(provider, stores)  # type: ignore[arg-type]
    assert await noted_projects(stores.pool) == []


async def test_the_log_of_a_deleted_run_goes_with_it(stores: Stores) -> None:
    deleted, other = uuid4(), uuid4()
    for run_id in (deleted, other):
        await stores.of(run_id).redis.rpush(keys.responses(run_id), "{}")
        await stores.of(run_id).redis.expire(keys.responses(run_id), 100)
    await stores.pool.execute("INSERT INTO removals (run_ids) VALUES ($1)", [deleted])
    await remove_leftovers(Away(), stores)  # type: ignore[arg-type]
    assert not await stores.of(deleted).redis.exists(keys.responses(deleted))
    assert await stores.of(other).redis.exists(keys.responses(other))

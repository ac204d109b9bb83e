"""Uploads on their way into a real sandbox."""

import hashlib
import os
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest
from httpx2 import AsyncClient

from agent import attachments
from agent.context import RunContext
from agent.loop import run_agent
from services import uploads
from services.postgres import Pool
from services.runs.fence import FenceLost
from services.sandbox.protocol import FileInfo, Sandbox, SandboxProvider
from services.settings import Settings
from services.uploads import CHUNK_BYTES, Upload
from tests.agent.seeds import RecordingLog, make_context, rows_of
from tests.fakes import FakeModel, says


@pytest.fixture
async def ctx(pool: Pool, http: AsyncClient, settings: Settings, sandboxes: SandboxProvider) -> RunContext:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    ctx.sandboxes = sandboxes
    return ctx


async def upload(ctx: RunContext, **files: bytes) -> None:
    stored = [
        Upload(f"{name}.txt", "text/plain", len(data), hashlib.sha256(data).digest(), BytesIO(data))
        for name, data in files.items()
    ]
    async with ctx.pool.acquire() as conn:
        await uploads.store(conn, ctx.run.project_id, ctx.run.id, stored)


async def placed(ctx: RunContext) -> dict[str, datetime | None]:
    rows = await ctx.pool.fetch("SELECT name, placed_at FROM uploads WHERE project_id = $1", ctx.run.project_id)
    return {row["name"]: row["placed_at"] for row in rows}


async def notes(ctx: RunContext) -> list[str]:
    return [stored.content["content"] for stored in await rows_of(ctx) if stored.type == "system"]


async def content(sandbox: Sandbox, path: str) -> bytes:
    return await sandbox.read_file(path)


async def test_uploads_stand_in_the_workspace_before_the_model_is_asked(ctx: RunContext, fake: FakeModel) -> None:
    large = os.urandom(3 * CHUNK_BYTES + 1)
    await upload(ctx, large=large, small=b"hello", empty=b"")
    fake.script(says("I see them."))
    await run_agent(ctx)
    sandbox = await ctx.sandbox()
    assert await content(sandbox, "/workspace/large.txt") == large
    assert await content(sandbox, "/workspace/small.txt") == b"hello"
    assert await content(sandbox, "/workspace/empty.txt") == b""
    assert all((await placed(ctx)).values())
    assert await notes(ctx) == [], "they are where the first message says"


async def test_what_was_placed_is_not_placed_again(ctx: RunContext) -> None:
    await upload(ctx, a=b"one")
    await attachments.place_all(ctx)
    sandbox = await ctx.sandbox()
    await sandbox.delete_file("/workspace/a.txt")
    await attachments.place_all(ctx)
    assert await sandbox.stat_file("/workspace/a.txt") is None


async def test_an_attempt_that_left_between_writing_and_saying_so_leaves_one_file(ctx: RunContext) -> None:
    await upload(ctx, a=b"one")
    sandbox = await ctx.sandbox()
    await sandbox.write_file("/workspace/a.txt", b"one")
    await attachments.place_all(ctx)
    assert [each.path for each in await sandbox.list_files()] == ["/workspace/a.txt"]
    assert await notes(ctx) == []


@pytest.mark.parametrize("there", [b"another", b"two"], ids=["other size", "same size"])
async def test_a_file_of_that_name_is_kept_and_the_model_told_where_the_upload_is(
    ctx: RunContext, there: bytes
) -> None:
    await upload(ctx, a=b"one")
    sandbox = await ctx.sandbox()
    await sandbox.write_file("/workspace/a.txt", there)
    for _ in range(2):
        await attachments.place_all(ctx)
    assert await content(sandbox, "/workspace/a.txt") == there
    assert await content(sandbox, "/workspace/a (2).txt") == b"one"
    assert await notes(ctx) == ["The uploaded file a.txt is at /workspace/a (2).txt now."]


async def test_without_a_sandbox_the_run_goes_on_and_the_model_is_told(ctx: RunContext, fake: FakeModel) -> None:
    await upload(ctx, a=b"one", b=b"two")
    sandboxes, ctx.sandboxes = ctx.sandboxes, None
    fake.script(says("I cannot see them."))
    await run_agent(ctx)
    told = await notes(ctx)
    assert [note.split(":")[0] for note in told] == [
        f"The uploaded file /workspace/{name}.txt is not there" for name in "ab"
    ]
    assert [said["content"] for said in fake.requests[0].body["messages"][2:]] == told
    assert isinstance(ctx.log, RecordingLog)
    assert [event.content["content"] for event in ctx.log.events if event.type == "system"] == told
    ctx.sandboxes = sandboxes
    await attachments.place_all(ctx)
    assert (await notes(ctx))[2:] == [f"The uploaded file {name}.txt is at /workspace/{name}.txt now." for name in "ab"]


async def test_a_run_without_uploads_opens_no_sandbox(ctx: RunContext, fake: FakeModel) -> None:
    fake.script(says("Hello."))
    await run_agent(ctx)
    assert ctx.opened is None


async def test_an_attempt_that_lost_its_run_cannot_say_that_it_placed_a_file(ctx: RunContext) -> None:
    await upload(ctx, a=b"one")
    await ctx.pool.execute("UPDATE agent_runs SET attempt = 2 WHERE id = $1", ctx.run.id)
    with pytest.raises(FenceLost):
        await attachments.place_all(ctx)
    assert await placed(ctx) == {"a.txt": None}


async def test_pieces_are_read_one_at_a_time(ctx: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    await upload(ctx, a=os.urandom(5 * CHUNK_BYTES))
    seen: list[tuple[int, int]] = []
    read = uploads.chunk

    async def watched(conn: Any, upload_id: Any, number: int) -> bytes | None:
        data = await read(conn, upload_id, number)
        seen.append((number, len(data or b"")))
        return data

    monkeypatch.setattr(uploads, "chunk", watched)
    await attachments.place_all(ctx)
    assert seen == [(number, CHUNK_BYTES) for number in range(5)]


async def test_another_run_of_the_project_places_what_the_first_could_not(ctx: RunContext) -> None:
    await upload(ctx, a=b"one")
    await ctx.pool.execute("UPDATE agent_runs SET status = 'stopped', completed_at = now() WHERE id = $1", ctx.run.id)
    row = await ctx.pool.fetchrow(
        """
        INSERT INTO agent_runs (account_id, project_id, thread_id, model_name, status, attempt)
        SELECT account_id, project_id, thread_id, model_name, 'running', 1 FROM agent_runs WHERE id = $1 RETURNING id
        """,
        ctx.run.id,
    )
    assert row
    later = replace(ctx, run=replace(ctx.run, id=row["id"]), fence=replace(ctx.fence, run_id=row["id"]))
    await attachments.place_all(later)
    assert await content(await later.sandbox(), "/workspace/a.txt") == b"one"


async def test_a_file_that_has_become_endless_is_not_read_to_its_end(ctx: RunContext) -> None:
    await upload(ctx, a=b"one")
    sandbox = await ctx.sandbox()
    await sandbox.exec("printf one > /workspace/a.txt; truncate -s 8M a.txt")
    (stored,) = await uploads.unplaced(ctx.pool, ctx.run.project_id)
    read = 0

    class Growing:
        """It was as large as the upload when it was looked at."""

        async def stat_file(self, path: str) -> FileInfo:
            return FileInfo(path, False, stored.size, datetime.now(UTC))

        async def read_file(self, path: str, *, offset: int = 0, limit: int = 0) -> bytes:
            nonlocal read
            read += 1
            return await sandbox.read_file(path, offset=offset, limit=limit)

    assert not await attachments.holds(Growing(), "/workspace/a.txt", stored)  # type: ignore[arg-type]
    assert read <= 2

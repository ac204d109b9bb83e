from uuid import uuid4

import pytest

from services import accounts, projects
from services.errors import Forbidden, NotFound
from services.postgres import Pool


async def test_only_the_owner_reads_a_private_project(pool: Pool) -> None:
    async with pool.acquire() as conn:
        ann = await accounts.ensure_personal(conn, uuid4())
        project = await projects.create(conn, ann.account_id, "Garden")
        assert await projects.writable(conn, ann.account_id, project.project_id) == project
        for project_id in (project.project_id, uuid4()):
            with pytest.raises(NotFound, match="Project not found"):
                await projects.readable(conn, uuid4(), project_id)


async def test_a_public_project_is_read_only_for_others(pool: Pool) -> None:
    async with pool.acquire() as conn:
        ann = await accounts.ensure_personal(conn, uuid4())
        project = await projects.create(conn, ann.account_id, "Garden")
        public = await projects.update(conn, ann.account_id, project.project_id, is_public=True)
        assert await projects.readable(conn, uuid4(), project.project_id) == public
        with pytest.raises(Forbidden):
            await projects.update(conn, uuid4(), project.project_id, name="Mine")


async def test_deleting_somebody_elses_project_does_nothing(pool: Pool) -> None:
    async with pool.acquire() as conn:
        ann = await accounts.ensure_personal(conn, uuid4())
        project = await projects.create(conn, ann.account_id, "Garden")
        await projects.delete(conn, uuid4(), project.project_id)
        assert await projects.readable(conn, ann.account_id, project.project_id)


async def test_a_sandbox_shows_named_fields_only(pool: Pool) -> None:
    async with pool.acquire() as conn:
        ann = await accounts.ensure_personal(conn, uuid4())
        project = await projects.create(conn, ann.account_id, "Garden")
        await conn.execute("UPDATE projects SET sandbox = $1", {"id": "s", "pass": "p", "token": "t"})
        project = await projects.readable(conn, ann.account_id, project.project_id)
    assert project.shown_sandbox == {"id": "s"}

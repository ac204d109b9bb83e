"""Projects."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.deps import CallerDep, PoolDep, Resources, ResourcesDep
from api.fields import Line, Text
from api.paging import LimitQuery, PageQuery, Pagination, pagination
from api.removal import stop_and_delete
from services import projects
from services.errors import Forbidden
from services.postgres import Connection, transaction
from services.projects import Project

NETWORK_REFUSED = "sandbox.network: sandboxes have no network here unless the operator sets SANDBOX_NETWORK_ALLOWED."

MAX_DESCRIPTION_CHARS = 5_000
"""A list shows a thousand of them."""

router = APIRouter(prefix="/projects", tags=["projects"])


class ProjectOut(BaseModel):
    project_id: UUID
    name: str
    description: str
    sandbox: dict[str, Any]
    is_public: bool
    created_at: datetime
    updated_at: datetime


class ProjectPage(BaseModel):
    projects: list[ProjectOut]
    pagination: Pagination


class SandboxPatch(BaseModel):
    """`network`: whether the sandbox reaches the internet, from its next start on."""

    network: bool | None = None


class ProjectPatch(BaseModel):
    name: Line | None = None
    description: Annotated[Text, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    is_public: bool | None = None
    sandbox: SandboxPatch = SandboxPatch()


class Deleted(BaseModel):
    message: str


def shown(project: Project) -> ProjectOut:
    return ProjectOut(
        project_id=project.project_id,
        name=project.name,
        description=project.description,
        sandbox=project.shown_sandbox,
        is_public=project.is_public,
        created_at=project.created_at,
        updated_at=project.updated_at,
    )


@router.get("")
async def list_projects(caller: CallerDep, pool: PoolDep, page: PageQuery = 1, limit: LimitQuery = 1000) -> ProjectPage:
    found, total = await projects.page(pool, caller.account_id, limit=limit, offset=(page - 1) * limit)
    return ProjectPage(projects=[shown(project) for project in found], pagination=pagination(page, limit, total))


@router.get("/{project_id}")
async def get_project(project_id: UUID, caller: CallerDep, pool: PoolDep) -> ProjectOut:
    async with pool.acquire() as conn:
        return shown(await projects.readable(conn, caller.account_id, project_id))


@router.patch("/{project_id}")
async def change_project(
    project_id: UUID, patch: ProjectPatch, caller: CallerDep, resources: ResourcesDep
) -> ProjectOut:
    if patch.sandbox.network and not resources.settings.sandbox.network_allowed:
        raise Forbidden(NETWORK_REFUSED)
    async with transaction(resources.pool) as conn:
        return shown(
            await projects.update(
                conn,
                caller.account_id,
                project_id,
                name=patch.name,
                description=patch.description,
                is_public=patch.is_public,
                network=patch.sandbox.network,
            )
        )


@router.delete("/{project_id}")
async def delete_project(project_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    """Stops the runs of the project, then deletes it with its threads and its sandbox."""
    async with resources.pool.acquire() as conn:
        await projects.writable(conn, caller.account_id, project_id)
    await remove_project(resources, caller.account_id, project_id)
    return Deleted(message="Project deleted.")


async def remove_project(resources: Resources, account_id: UUID, project_id: UUID) -> None:
    async def delete(conn: Connection) -> None:
        await projects.delete(conn, account_id, project_id)

    await stop_and_delete(resources, account_id, delete, project_id=project_id)
    resources.stores.background.spawn(resources.sandboxes.delete(project_id))

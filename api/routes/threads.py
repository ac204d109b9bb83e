"""Threads and their messages."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Form, Query, Response
from pydantic import BaseModel

from api.answers import as_json
from api.deps import CallerDep, PoolDep, ResourcesDep
from api.fields import Content, Kind, Line, Prompt
from api.paging import LimitQuery, PageQuery, Pagination, decode_position, pagination
from api.removal import stop_and_delete
from api.routes.projects import Deleted, ProjectOut
from api.routes.projects import shown as shown_project
from api.routes.runs import RunOut, listed_run
from services import messages, projects, thread_overview, threads
from services.errors import NotFound
from services.messages import Message, NewMessage
from services.postgres import Connection, Pool, transaction
from services.projects import Project, shown_of_sandbox
from services.threads import ListedThread, Thread

router = APIRouter(prefix="/threads", tags=["threads"])

RECENT_RUNS = 10
MAX_NEWEST = 100

MessagesQuery = Annotated[int, Query(ge=0, le=MAX_NEWEST)]


class ThreadOut(BaseModel):
    thread_id: UUID
    project_id: UUID
    metadata: dict[str, Any]
    is_public: bool
    created_at: datetime
    updated_at: datetime
    project: ProjectOut


class ThreadDetail(ThreadOut):
    message_count: int
    recent_agent_runs: list[RunOut]


class ThreadWithMessages(ThreadDetail):
    messages: list["MessageOut"]


class ThreadPage(BaseModel):
    threads: list[ThreadOut]
    pagination: Pagination


class ThreadMade(BaseModel):
    thread_id: UUID
    project_id: UUID


class ThreadPatch(BaseModel):
    title: Line | None = None
    is_public: bool | None = None


class MessageOut(BaseModel):
    message_id: UUID
    thread_id: UUID
    type: str
    is_llm_message: bool
    content: Any
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    agent_id: UUID | None
    agent_version_id: UUID | None


SHOWN_OF_MESSAGE = tuple(MessageOut.model_fields)


class MessagePage(BaseModel):
    messages: list[MessageOut]
    next_cursor: str | None


class MessageIn(BaseModel):
    type: Kind
    content: Content
    is_llm_message: bool = True


class UserMessageIn(BaseModel):
    message: Prompt


def shown(thread: Thread, project: Project) -> ThreadOut:
    return ThreadOut(
        thread_id=thread.thread_id,
        project_id=thread.project_id,
        metadata=thread.metadata,
        is_public=thread.is_public,
        created_at=thread.created_at,
        updated_at=thread.updated_at,
        project=shown_project(project),
    )


def listed(thread: ListedThread) -> dict[str, Any]:
    """The fields of ThreadOut."""
    return {
        "thread_id": thread.thread_id,
        "project_id": thread.project_id,
        "metadata": thread.metadata,
        "is_public": thread.is_public,
        "created_at": thread.created_at,
        "updated_at": thread.updated_at,
        "project": {
            "project_id": thread.project_id,
            "name": thread.project_name,
            "description": thread.project_description,
            "sandbox": shown_of_sandbox(thread.project_sandbox),
            "is_public": thread.project_is_public,
            "created_at": thread.project_created_at,
            "updated_at": thread.project_updated_at,
        },
    }


def shown_message(message: Message) -> MessageOut:
    return MessageOut(**listed_message(message))


def listed_message(message: Message) -> dict[str, Any]:
    """The fields of MessageOut."""
    return {name: getattr(message, name) for name in SHOWN_OF_MESSAGE}


@router.get("", response_model=ThreadPage)
async def list_threads(caller: CallerDep, pool: PoolDep, page: PageQuery = 1, limit: LimitQuery = 1000) -> Response:
    found, total = await threads.page(pool, caller.account_id, limit=limit, offset=(page - 1) * limit)
    pages = pagination(page, limit, total).model_dump()
    return as_json({"threads": [listed(thread) for thread in found], "pagination": pages})


@router.post("", form_limits={"max_files": 0, "max_fields": 20})
async def create_thread(name: Annotated[Line, Form()], caller: CallerDep, pool: PoolDep) -> ThreadMade:
    """A thread in a new project of that name."""
    async with transaction(pool) as conn:
        project = await projects.create(conn, caller.account_id, name)
        thread = await threads.create(conn, caller.account_id, project.project_id)
    return ThreadMade(thread_id=thread.thread_id, project_id=project.project_id)


@router.get("/{thread_id}")
async def get_thread(
    thread_id: UUID, caller: CallerDep, pool: PoolDep, messages: MessagesQuery = 0
) -> ThreadWithMessages | ThreadDetail:
    """`messages`: that many of the newest are in the answer too, newest first."""
    found = await thread_overview.get(pool, caller.account_id, thread_id, runs=RECENT_RUNS, messages=messages)
    detail = ThreadDetail(
        **shown(found.thread, found.project).model_dump(),
        message_count=found.message_count,
        recent_agent_runs=[RunOut(**listed_run(run)) for run in found.runs],
    )
    if not messages:
        return detail
    return ThreadWithMessages(**detail.model_dump(), messages=[shown_message(message) for message in found.messages])


@router.patch("/{thread_id}")
async def change_thread(thread_id: UUID, patch: ThreadPatch, caller: CallerDep, pool: PoolDep) -> ThreadOut:
    """The title is kept in the thread's metadata."""
    async with transaction(pool) as conn:
        thread = await threads.update(conn, caller.account_id, thread_id, title=patch.title, is_public=patch.is_public)
        project = await projects.readable(conn, caller.account_id, thread.project_id)
    return shown(thread, project)


@router.delete("/{thread_id}")
async def delete_thread(thread_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    """Stops the runs of the thread, then deletes it with its messages."""
    async with resources.pool.acquire() as conn:
        thread = await threads.writable(conn, caller.account_id, thread_id)

    async def delete(conn: Connection) -> None:
        await threads.delete(conn, caller.account_id, thread_id)

    await stop_and_delete(resources, caller.account_id, delete, project_id=thread.project_id, thread_id=thread_id)
    return Deleted(message="Thread deleted.")


@router.get("/{thread_id}/messages", response_model=MessagePage)
async def list_messages(
    thread_id: UUID,
    caller: CallerDep,
    pool: PoolDep,
    order: Literal["asc", "desc"] = "desc",
    limit: LimitQuery = 1000,
    cursor: str | None = None,
) -> Response:
    edge = None if cursor is None else decode_position(cursor)
    descending = order == "desc"
    before, after = (edge, None) if descending else (None, edge)
    async with pool.acquire() as conn:
        await threads.readable(conn, caller.account_id, thread_id)
        found, more = await messages.page(
            conn, thread_id, limit=limit, before=before, after=after, descending=descending
        )
    next_cursor = str(found[-1].position) if more else None
    return as_json({"messages": [listed_message(message) for message in found], "next_cursor": next_cursor})


@router.post("/{thread_id}/messages")
async def create_message(thread_id: UUID, said: MessageIn, caller: CallerDep, pool: PoolDep) -> MessageOut:
    """A text becomes `{role, content}`, the user's for type `user`, else the assistant's; other JSON stays as it is."""
    content = said.content
    if isinstance(content, str):
        content = {"role": "user" if said.type == "user" else "assistant", "content": content}
    new = NewMessage(said.type, content, is_llm_message=said.is_llm_message)
    return await add_message(pool, caller.account_id, thread_id, new)


@router.post("/{thread_id}/messages/add")
async def add_user_message(thread_id: UUID, said: UserMessageIn, caller: CallerDep, pool: PoolDep) -> MessageOut:
    new = NewMessage("user", {"role": "user", "content": said.message})
    return await add_message(pool, caller.account_id, thread_id, new)


async def add_message(pool: Pool, account_id: UUID, thread_id: UUID, new: NewMessage) -> MessageOut:
    async with transaction(pool) as conn:
        await threads.writable(conn, account_id, thread_id)
        (stored,) = await messages.add(conn, thread_id, [new])
    return shown_message(stored)


@router.delete("/{thread_id}/messages/{message_id}")
async def delete_message(thread_id: UUID, message_id: UUID, caller: CallerDep, pool: PoolDep) -> Deleted:
    async with transaction(pool) as conn:
        await threads.writable(conn, caller.account_id, thread_id)
        if not await messages.delete(conn, thread_id, message_id):
            raise NotFound("Message not found.")
    return Deleted(message="Message deleted.")

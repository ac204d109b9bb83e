"""Files of a project's sandbox."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, BinaryIO, Literal
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from api.auth import Caller
from api.deps import CallerDep, Resources, ResourcesDep
from api.document import ATTACHED, BINARY
from api.errors import invalid
from api.uploads import read_form
from services import projects
from services.errors import NotFound
from services.sandbox import workspace
from services.sandbox.protocol import WORKSPACE, FileInfo, Sandbox, SandboxFailed
from services.sandbox.workspace import BadPath
from services.uploads import CHUNK_BYTES, Upload

router = APIRouter(prefix="/sandboxes/{project_id}/files", tags=["sandboxes"])

MAX_LISTED = 10_000
MISSING = "File not found."
BYTES = "application/octet-stream"
WRITE_SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "file": BINARY},
    "required": ["file"],
}

Where = Literal["query", "body"]
PathQuery = Annotated[str, Query(min_length=1, description="Absolute, or from /workspace on")]


class FileOut(BaseModel):
    name: str
    path: str
    is_dir: bool
    size: int
    mod_time: datetime


class FileList(BaseModel):
    files: list[FileOut]
    truncated: bool


class Written(BaseModel):
    status: str = "success"
    path: str
    created: bool


class Removed(BaseModel):
    status: str = "success"
    path: str
    deleted: bool = True


@router.get("")
async def list_files(
    project_id: UUID, caller: CallerDep, resources: ResourcesDep, path: PathQuery = WORKSPACE
) -> FileList:
    """What is in a folder."""
    sandbox = await sandbox_to_read(resources, caller, project_id)
    with naming_path("query"):
        folder = await existing(sandbox, workspace.inside(path))
        found = await sandbox.list_files(folder.path, limit=MAX_LISTED)
    return FileList(files=[shown(each) for each in found], truncated=len(found) >= MAX_LISTED)


@router.get(
    "/content",
    response_class=StreamingResponse,
    responses={200: {"content": {BYTES: {"schema": BINARY}}, "headers": ATTACHED}},
)
async def download(project_id: UUID, caller: CallerDep, resources: ResourcesDep, path: PathQuery) -> StreamingResponse:
    """A file as it is, to be saved: a browser must never show or run it on this origin."""
    sandbox = await sandbox_to_read(resources, caller, project_id)
    with naming_path("query"):
        found = await existing(sandbox, workspace.inside(path))
        if found.is_dir:
            raise BadPath(f"{path} is a folder")
        await sandbox.read_file(found.path, limit=1)  # what cannot be read is refused before the answer begins
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(shown(found).name, safe='')}",
        "Content-Length": str(found.size),
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(content_of(sandbox, found), media_type=BYTES, headers=headers)


@router.post(
    "", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": WRITE_SCHEMA}}}}
)
async def write_file(project_id: UUID, request: Request, caller: CallerDep, resources: ResourcesDep) -> Written:
    """Put the one file of a form (`path`, `file`) into the workspace, in place of what is there."""
    sandbox = await sandbox_to_write(resources, caller, project_id)
    async with read_form(request, resources.settings.api) as form:
        upload = only_file(form.uploads)
        with naming_path("body"):
            path = workspace.inside(form.fields.get("path") or upload.name)
            created = await sandbox.stat_file(path) is None
            await sandbox.write_file(path, pieces(upload.content))
    return Written(path=path, created=created)


@router.delete("")
async def delete_file(project_id: UUID, caller: CallerDep, resources: ResourcesDep, path: PathQuery) -> Removed:
    """Delete a file, or a folder with what is in it."""
    sandbox = await sandbox_to_write(resources, caller, project_id)
    with naming_path("query"):
        found = await existing(sandbox, workspace.inside(path))
        if found.path == WORKSPACE:
            raise BadPath("The workspace itself cannot be deleted.")
        await sandbox.delete_file(found.path)
    return Removed(path=found.path)


async def sandbox_to_read(resources: Resources, caller: Caller, project_id: UUID) -> Sandbox:
    """Raises: NotFound; SandboxUnavailable."""
    async with resources.pool.acquire() as conn:
        await projects.readable(conn, caller.account_id, project_id)
    return await resources.sandboxes.open(project_id)


async def sandbox_to_write(resources: Resources, caller: Caller, project_id: UUID) -> Sandbox:
    """Raises: NotFound, Forbidden; SandboxUnavailable."""
    async with resources.pool.acquire() as conn:
        await projects.writable(conn, caller.account_id, project_id)
    return await resources.sandboxes.open(project_id)


async def existing(sandbox: Sandbox, path: str) -> FileInfo:
    found = await sandbox.stat_file(path)
    if found is None:
        raise NotFound(MISSING)
    return found


@contextmanager
def naming_path(where: Where) -> Iterator[None]:
    """What is wrong with a file is told as an error of the field `path`."""
    try:
        yield
    except (BadPath, SandboxFailed) as error:
        raise invalid("path", str(error), where=where) from error


def only_file(uploads: list[Upload]) -> Upload:
    if len(uploads) != 1:
        raise invalid("file", "exactly one file must be sent")
    return uploads[0]


def shown(found: FileInfo) -> FileOut:
    name = found.path.rpartition("/")[2]
    return FileOut(name=name, path=found.path, is_dir=found.is_dir, size=found.size, mod_time=found.modified)


async def content_of(sandbox: Sandbox, found: FileInfo) -> AsyncIterator[bytes]:
    """As many bytes as were announced; when the file has become shorter the answer is cut."""
    offset = 0
    while offset < found.size:
        data = await sandbox.read_file(found.path, offset=offset, limit=min(CHUNK_BYTES, found.size - offset))
        if not data:
            raise SandboxFailed(f"{found.path} became shorter while it was read.")
        yield data
        offset += len(data)


async def pieces(content: BinaryIO) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(content.read, CHUNK_BYTES):
        yield data

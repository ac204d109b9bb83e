"""Files that came with a run → the workspace, before its first turn."""

import hashlib
from collections.abc import AsyncIterator
from uuid import UUID, uuid5

from agent import response_processor, thread_manager
from agent.context import RunContext
from agent.thread_manager import patiently
from services import uploads
from services.log import logger
from services.messages import NewMessage
from services.sandbox.protocol import WORKSPACE, Sandbox, SandboxFailed, SandboxUnavailable
from services.uploads import CHUNK_BYTES, StoredUpload


async def place_all(ctx: RunContext) -> None:
    """Put what was uploaded to the project, and is not there yet, into the workspace.

    What cannot be put there is told to the model, and the run goes on. Raises: FenceLost.
    """
    for upload in await patiently(ctx, lambda conn: uploads.unplaced(conn, ctx.run.project_id)):
        try:
            path = await place(ctx, await ctx.sandbox(), upload)
        except (SandboxUnavailable, SandboxFailed) as error:
            logger.warning("upload.not_placed", upload_id=str(upload.upload_id), error=str(error))
            await note(ctx, missing_id(ctx, upload), explain_missing(upload, error))
            continue
        if path != promised(upload) or await thread_manager.find(ctx, missing_id(ctx, upload)):
            await note(ctx, uuid5(upload.upload_id, "placed"), f"The uploaded file {upload.name} is at {path} now.")


async def place(ctx: RunContext, sandbox: Sandbox, upload: StoredUpload) -> str:
    """Where the file is in the workspace: under its name, or the next free one if that holds something else."""
    for name in uploads.variants(upload.name):
        path = f"{WORKSPACE}/{name}"
        if await sandbox.stat_file(path) is None:
            await sandbox.write_file(path, content_of(ctx, upload))
            break
        if await holds(sandbox, path, upload):
            break
    await patiently(ctx, lambda conn: uploads.mark_placed(conn, upload.upload_id, ctx.fence))
    return path


async def content_of(ctx: RunContext, upload: StoredUpload) -> AsyncIterator[bytes]:
    """The file piece by piece, one in memory at a time."""
    for number in range(-(-upload.size // CHUNK_BYTES)):
        yield await piece(ctx, upload, number)


async def piece(ctx: RunContext, upload: StoredUpload, number: int) -> bytes:
    data = await patiently(ctx, lambda conn: uploads.chunk(conn, upload.upload_id, number))
    if data is None:
        raise SandboxFailed(f"The uploaded file {upload.name} is not stored any more.")
    return data


async def holds(sandbox: Sandbox, path: str, upload: StoredUpload) -> bool:
    """Whether the file is there already: an earlier attempt may have left between writing it and saying so."""
    found = await sandbox.stat_file(path)
    if found is None or found.is_dir or found.size != upload.size:
        return False
    digest, offset = hashlib.sha256(), 0
    while data := await sandbox.read_file(path, offset=offset, limit=CHUNK_BYTES):
        digest.update(data)
        offset += len(data)
        if offset > upload.size:  # it grows as it is read, perhaps for ever
            return False
    return digest.digest() == upload.sha256


def promised(upload: StoredUpload) -> str:
    """What the first message calls it."""
    return f"{WORKSPACE}/{upload.name}"


def explain_missing(upload: StoredUpload, error: Exception) -> str:
    return f"The uploaded file {promised(upload)} is not there: it could not be put into the workspace. {error}"


def missing_id(ctx: RunContext, upload: StoredUpload) -> UUID:
    return uuid5(upload.upload_id, f"missing {ctx.run.thread_id}")


async def note(ctx: RunContext, message_id: UUID, words: str) -> None:
    """Tell the model and the readers, once."""
    told = NewMessage("system", {"role": "system", "content": words}, message_id=message_id)
    await ctx.log.append(response_processor.completed(await thread_manager.store(ctx, told)))

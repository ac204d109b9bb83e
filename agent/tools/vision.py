"""The tool that lets a model look at an image of the workspace."""

from base64 import b64encode
from typing import Any
from uuid import uuid5

from agent import models, thread_manager
from agent.calls import result_id
from agent.context import Calling
from agent.tools.base import ToolFailed, tool
from agent.tools.files import FilePath, existing, in_workspace
from services.messages import NewMessage

MAX_IMAGE_BYTES = 5_000_000


@tool(body="file_path", repeatable=True)
async def see_image(calling: Calling, file_path: FilePath) -> str:
    """Look at an image of the workspace (PNG, JPEG, GIF or WebP). You see it with the result of this call."""
    ctx = calling.ctx
    if not models.look_up(ctx.run.model_name).images:
        raise ToolFailed(f"{ctx.run.model_name} cannot see images.")
    path = in_workspace(file_path)
    sandbox = await ctx.sandbox()
    found = await existing(sandbox, path)
    if found.size > MAX_IMAGE_BYTES:
        raise ToolFailed(
            f"{path} is too large: {found.size} bytes, and {MAX_IMAGE_BYTES} are the most. Make it smaller."
        )
    data = await sandbox.read_file(path, limit=MAX_IMAGE_BYTES)
    kind = type_of(data)
    if kind is None:
        raise ToolFailed(f"{path} is no PNG, JPEG, GIF or WebP image.")
    message_id = uuid5(result_id(calling.answer.message_id, calling.call), "image")
    shown = NewMessage(
        "image_context",
        content_of(path, kind, data),
        {"file_path": path, "mime_type": kind, "thread_run_id": str(ctx.run.id)},
        is_llm_message=False,
        message_id=message_id,
    )
    await thread_manager.store(ctx, shown)
    return f"The image {path} ({kind}, {len(data)} bytes) is shown with this result."


def content_of(path: str, kind: str, data: bytes) -> dict[str, Any]:
    """The message of a person who shows the image."""
    url = f"data:{kind};base64,{b64encode(data).decode()}"
    said = {"type": "text", "text": f"The image {path}:"}
    return {"role": "user", "content": [said, {"type": "image_url", "image_url": {"url": url}}]}


def type_of(data: bytes) -> str | None:
    """The type that its first bytes say, whatever its name is."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


VISION = (see_image,)

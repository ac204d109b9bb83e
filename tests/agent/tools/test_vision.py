"""Looking at images of a real sandbox."""

from base64 import b64encode
from dataclasses import replace

import pytest

from agent.context import RunContext
from agent.loop import run_agent
from agent.tools import vision
from agent.tools.base import ToolFailed
from services.sandbox.protocol import Sandbox
from tests.agent.seeds import acts, calling, tool_parts
from tests.agent.tools.conftest import use
from tests.fakes import FakeModel, says

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
IMAGES = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0" + bytes(10),
    "image/gif": b"GIF89a" + bytes(10),
    "image/webp": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(10),
}


async def shown(ctx: RunContext) -> list[dict[str, object]]:
    rows = await ctx.pool.fetch(
        "SELECT type, is_llm_message, content, metadata, agent_run_id FROM messages WHERE thread_id = $1 "
        "AND type = 'image_context' ORDER BY position",
        ctx.run.thread_id,
    )
    return [dict(row) for row in rows]


@pytest.mark.parametrize("kind", IMAGES)
async def test_an_image_becomes_a_message_that_is_no_part_of_the_conversation(
    ctx: RunContext, sandbox: Sandbox, kind: str
) -> None:
    await sandbox.write_file("/workspace/picture", IMAGES[kind])
    said = await use(ctx, vision.see_image, file_path="picture")
    assert f"/workspace/picture ({kind}" in said
    (message,) = await shown(ctx)
    assert (message["is_llm_message"], message["agent_run_id"]) == (False, ctx.run.id)
    assert message["metadata"]["file_path"] == "/workspace/picture"  # type: ignore[index]
    url = f"data:{kind};base64,{b64encode(IMAGES[kind]).decode()}"
    assert message["content"] == {
        "role": "user",
        "content": [
            {"type": "text", "text": "The image /workspace/picture:"},
            {"type": "image_url", "image_url": {"url": url}},
        ],
    }


async def test_the_same_call_made_again_shows_the_image_once(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/a.png", PNG)
    call = calling(ctx, "see_image")
    for _ in range(2):
        await vision.see_image.run(call, vision.see_image.read({"file_path": "a.png"}))
    assert len(await shown(ctx)) == 1


async def test_what_is_called_an_image_but_is_none_is_refused(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/a.png", b"<svg/>")
    with pytest.raises(ToolFailed, match="no PNG, JPEG, GIF or WebP"):
        await use(ctx, vision.see_image, file_path="a.png")
    with pytest.raises(ToolFailed, match="no file"):
        await use(ctx, vision.see_image, file_path="b.png")
    assert await shown(ctx) == []


async def test_an_image_that_is_too_large_is_refused(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/a.png", PNG + bytes(vision.MAX_IMAGE_BYTES))
    with pytest.raises(ToolFailed, match="too large"):
        await use(ctx, vision.see_image, file_path="a.png")


async def test_a_model_that_cannot_see_is_told_so(ctx: RunContext) -> None:
    blind = replace(ctx, run=replace(ctx.run, model_name="openai/gpt-4"))
    with pytest.raises(ToolFailed, match="openai/gpt-4 cannot see images"):
        await use(blind, vision.see_image, file_path="a.png")


async def test_the_model_sees_the_image_in_its_next_turn_and_only_then(
    ctx: RunContext, sandbox: Sandbox, fake: FakeModel
) -> None:
    await sandbox.write_file("/workspace/a.png", PNG)
    fake.script(
        acts(*tool_parts(0, "see_image", '{"file_path": "a.png"}')),
        acts(*tool_parts(0, "list_files", "{}")),
        says("A picture."),
    )
    await run_agent(ctx)
    url = f"data:image/png;base64,{b64encode(PNG).decode()}"
    assert [url in str(asked.body["messages"]) for asked in fake.requests] == [False, True, False]

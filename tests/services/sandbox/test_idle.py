"""Sandboxes that nobody uses are ended, whatever others on the same machine answer."""

import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.sandbox import idle
from services.sandbox.guest import wire


async def agent(folder: Path, answer: Any) -> asyncio.Server:
    """What listens in a sandbox's folder and says `answer` to every question."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await wire.read_frame(reader)
        writer.write(wire.frame(wire.JSON, json.dumps(answer).encode()))
        writer.close()

    return await asyncio.start_unix_server(say, folder / "s")


@pytest.mark.parametrize("answer", [{}, {"error": "fence", "text": "x"}, {"error": "fence"}, [], {"ended": []}])
async def test_a_sandbox_that_was_taken_over_keeps_no_other_from_being_ended(answer: Any) -> None:
    good = uuid4()
    async with AsyncExitStack() as stack:
        # A short path: the address of a socket has room for 107 bytes.
        folder_of_all = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idle-")))
        for project_id, said in ((uuid4(), answer), (good, {"ended": True}), (uuid4(), answer)):
            (folder := folder_of_all / str(project_id)).mkdir()
            await stack.enter_async_context(await agent(folder, said))
        assert await idle.end(folder_of_all, 1.0) == [good]

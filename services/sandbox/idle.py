"""Ends the sandboxes of a folder that nobody uses, as their agents see it."""

import asyncio
from pathlib import Path
from uuid import UUID

from services.runs.fence import FenceLost
from services.sandbox import client, places
from services.sandbox.protocol import SandboxFailed

ANSWER_WITHIN = 5.0


async def end(root: Path, idle_seconds: float) -> list[UUID]:
    """Those that nobody spoke to for so long and that run no job; which they were."""
    ended = []
    for project_id, place in (await asyncio.to_thread(places.all_in, root)).items():
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                answer = await client.ask(place.folder, "end_when_idle", seconds=idle_seconds)
        except (client.Gone, SandboxFailed, FenceLost, TimeoutError):
            continue  # one that was taken over answers as it likes: it is its own affair
        if answer.get("ended"):
            ended.append(project_id)
    return ended

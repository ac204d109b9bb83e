"""Streams of many readers who may not read any more, all at once."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from api.open_streams import AT_ONCE
from api.recheck import BATCH, Recheck
from services import stream_passes
from services.stream_tokens import StreamPass


class Followed:
    def __init__(self, admitted: StreamPass) -> None:
        self.admitted, self.refused_at = admitted, -1
        self.turns: list[int] = []

    def refuse(self) -> None:
        self.refused_at = self.turns[0]


async def test_the_end_of_many_streams_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    good, void = (StreamPass(uuid4(), uuid4(), uuid4(), None) for _ in range(2))
    streams = [Followed(void) for _ in range(2 * BATCH + 50)] + [Followed(good)]
    turns = [0]
    for stream in streams:
        stream.turns = turns

    async def still_good(_: object, passes: Sequence[StreamPass]) -> list[bool]:
        await asyncio.sleep(0)
        return [each == good for each in passes]

    async def count_turns() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(stream_passes, "still_good", still_good)
    settings = SimpleNamespace(recheck_interval=timedelta(0))
    recheck = Recheck(cast(Any, SimpleNamespace(open_streams=set(streams), settings=settings)), cast(Any, None))
    counting = asyncio.create_task(count_turns())
    await recheck.tick()
    counting.cancel()
    assert streams.pop().refused_at == -1
    at = [stream.refused_at for stream in streams]
    assert min(at) >= 0
    assert max(at.count(turn) for turn in set(at)) <= AT_ONCE

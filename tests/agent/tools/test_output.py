"""What a command prints, on its way to the readers and into its result."""

import asyncio

import pytest
from httpx2 import AsyncClient

from agent.tools import output
from agent.tools.output import NO_MORE_SHOWN, Screen, shortened
from services.postgres import Pool
from services.runs.events import Event
from services.settings import Settings
from tests.agent.seeds import RecordingLog, calling, eventually, make_context
from tests.waiting import PATIENT


@pytest.fixture
async def screen(pool: Pool, http: AsyncClient, settings: Settings) -> tuple[Screen, RecordingLog]:
    ctx, log = await make_context(pool, http, settings, "openai/m")
    return Screen(calling(ctx, "execute_command")), log


def told(log: RecordingLog) -> list[str]:
    assert {event.content["status_type"] for event in log.events} <= {"tool_output"}
    return [event.content["output"] for event in log.events]


async def test_many_small_pieces_become_a_few_events(screen: tuple[Screen, RecordingLog]) -> None:
    shown, log = screen
    began = asyncio.get_running_loop().time()
    async with shown:
        for number in range(300):
            await shown.take(f"{number}\n".encode())
            await asyncio.sleep(0.001)
    lasted = asyncio.get_running_loop().time() - began
    assert "".join(told(log)) == "".join(f"{number}\n" for number in range(300))
    assert len(log.events) <= lasted / output.SHOW_SECONDS + 2


async def test_a_command_that_goes_on_and_on_is_shown_more_slowly(
    screen: tuple[Screen, RecordingLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, log = screen
    monkeypatch.setattr(output, "SHOW_SECONDS", 0.001)
    monkeypatch.setattr(output, "LONG_SHOW_SECONDS", 3600)
    async with shown:
        for _ in range(1000):
            await shown.take(b"x")
            await asyncio.sleep(0.001)
    assert len(log.events) == output.QUICK_PIECES + 1
    assert "".join(told(log)) == "x" * 1000


async def test_what_came_last_is_shown_while_the_command_is_silent(screen: tuple[Screen, RecordingLog]) -> None:
    shown, log = screen
    async with shown:
        await shown.take(b"first ")
        await eventually(lambda: bool(log.events))
        await shown.take(b"Password:")
        await eventually(lambda: told(log) == ["first ", "Password:"])


async def test_a_character_that_was_cut_between_pieces_is_whole_again(screen: tuple[Screen, RecordingLog]) -> None:
    shown, log = screen
    async with shown:
        for byte in "añ€🙂".encode() + b"\xff\xf0":
            await shown.take(bytes([byte]))
    assert "".join(told(log)) == "añ€🙂��"


async def test_a_flood_is_shown_only_in_part(
    screen: tuple[Screen, RecordingLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, log = screen
    async with shown:
        for _ in range(1000):
            await shown.take(b"x" * 10_000)
    text = "".join(told(log))
    assert text == "x" * output.MAX_SHOWN_CHARS + NO_MORE_SHOWN


async def test_a_log_that_does_not_take_events_does_not_slow_the_command(
    screen: tuple[Screen, RecordingLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, log = screen
    go_on = asyncio.Event()

    async def wait(*events: Event) -> None:
        await go_on.wait()
        log.events.extend(events)

    monkeypatch.setattr(log, "append", wait)
    async with shown:
        async with asyncio.timeout(PATIENT):
            for _ in range(100):
                await shown.take(b"x" * 100)
                await asyncio.sleep(0.003)
        go_on.set()
    assert "".join(told(log)) == "x" * 10_000


def test_a_short_output_is_whole() -> None:
    assert shortened(b"x" * 40_000) == "x" * 40_000


def test_of_a_long_output_the_beginning_and_the_end_are_kept() -> None:
    result = shortened(b"begin" + b"x" * 100_000 + b"end")
    assert result.startswith("begin")
    assert result.endswith("end")
    assert "[... 60008 characters left out ...]" in result
    assert len(result) < 41_000

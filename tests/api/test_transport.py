import asyncio

import pytest
from starlette.types import Message

from api.transport import Wire
from tests.waiting import PATIENT

MESSAGE: Message = {"type": "http.response.body", "body": b"x", "more_body": True}


async def test_what_can_be_sent_at_once_needs_no_waiting() -> None:
    sent = []

    async def send(message: Message) -> None:
        sent.append(message)

    assert Wire(send, None).start_send(MESSAGE) is None
    assert sent == [MESSAGE]


async def test_what_must_wait_goes_on_in_whichever_task_awaits_the_rest() -> None:
    first, second, sent = asyncio.Event(), asyncio.Event(), []

    async def send(message: Message) -> None:
        await first.wait()
        await second.wait()
        sent.append(message)

    rest = Wire(send, None).start_send(MESSAGE)
    assert rest
    first.set()
    waiting = asyncio.ensure_future(rest)
    await asyncio.sleep(0)
    assert not sent
    second.set()
    await asyncio.wait_for(waiting, PATIENT)
    assert sent == [MESSAGE]


async def test_whoever_gives_up_waiting_ends_the_send() -> None:
    ended = []

    async def send(message: Message) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(message)

    rest = Wire(send, None).start_send(MESSAGE)
    assert rest
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await rest
    assert ended == [MESSAGE]


async def test_an_error_of_a_send_is_raised_where_it_happens() -> None:
    opened = asyncio.Event()

    async def send(message: Message) -> None:
        await opened.wait()
        raise RuntimeError("too late")

    rest = Wire(send, None).start_send(MESSAGE)
    assert rest
    opened.set()
    with pytest.raises(RuntimeError, match="too late"):
        await rest


async def test_a_server_that_is_not_known_is_written_to_through_its_send() -> None:
    async def send(message: Message) -> None:
        raise AssertionError

    wire = Wire(send, asyncio.Transport())
    wire.expect_chunks()
    assert not wire.write_chunk(b"1\r\nx\r\n")

"""Whatever a model streams: nothing raises, and it ends."""

import random
from typing import Any
from uuid import uuid4

import pytest
from httpx2 import AsyncClient
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import response_processor, thread_manager
from agent.calls import calls_of
from agent.llm.chunk import Chunk, ToolCallPart, Usage
from agent.loop import run_agent
from agent.response_processor import Reading
from agent.tools.base import BadArguments, ToolResult
from agent.tools.standard import STANDARD
from services.messages import Message, storable
from services.postgres import Pool
from services.runs import events
from services.settings import Settings
from tests.agent.seeds import Counting, make_context, resumed
from tests.agent.test_thread_manager import stored
from tests.agent.test_xml_calls import PIECES
from tests.fakes import FakeModel, Reply

CLEAN = [piece.replace("\x00", "").encode(errors="replace").decode() for piece in PIECES]
ARGUMENTS = (
    "",
    "{",
    "}",
    '{"text": "',
    'hi"}',
    "{}",
    "[1]",
    "null",
    '"',
    "\\ud800",
    '{"text": "\\u0000"}',
    "1e999",
    "[" * 2000,
)
NAMES = ("ask", "complete", "look", "act", "", "web-browser-takeover", "a b", "é")
PARTS = st.builds(
    ToolCallPart,
    index=st.integers(-1, 3),
    call_id=st.sampled_from(("", "a", "b", "c")),
    name=st.sampled_from(NAMES),
    arguments=st.sampled_from(ARGUMENTS),
)
CHUNKS = st.builds(
    Chunk,
    text=st.sampled_from(["", *CLEAN]),
    reasoning=st.sampled_from(("", "", "hm")),
    tool_calls=st.lists(PARTS, max_size=2).map(tuple),
    finish_reason=st.sampled_from((None, None, None, "stop", "length", "tool_calls")),
    usage=st.sampled_from((None, Usage(1, 2, 3))),
)
STREAMS = st.lists(CHUNKS, max_size=25)


def read_through(chunks: list[Chunk], *, on_stream: bool, limit: int) -> list[Message]:
    """An answer read, its calls checked by their tools, and the thread that comes of it."""
    run_id, thread_id, history = uuid4(), uuid4(), []
    reading = Reading(run_id, STANDARD, streamed=True, max_xml_calls=limit)
    for number, chunk in enumerate([*chunks, None]):
        for event in reading.read(chunk) if chunk else ():
            assert events.encode(event, number, str(thread_id), 1_000_000)
        found = reading.take_calls(ended=chunk is None) if on_stream or chunk is None else []
        if found or chunk is None:
            new = response_processor.message(reading.answer, run_id, "m", found)
            assert storable(new.content)
            assert storable(new.metadata)
            answer = stored("assistant", new.content)
            answer.metadata.update(new.metadata)
            assert calls_of(answer) == found
            history += [answer, *(result_of(answer, call, run_id) for call in found)]
            reading.begin_anew()
        if reading.full:
            break
    return history


def result_of(answer: Message, call: Any, run_id: Any) -> Message:
    known = STANDARD.get(call.name)
    try:
        output = str(known.read(call.given)) if known else "none"
    except BadArguments as error:
        output = str(error)
    new = response_processor.result_message(call, ToolResult(output), answer, run_id, "user")
    assert storable(new.content)
    row = stored("tool", new.content)
    row.metadata.update(new.metadata)
    return row


def check(chunks: list[Chunk], *, on_stream: bool, limit: int) -> None:
    history = read_through(chunks, on_stream=on_stream, limit=limit)
    shown = thread_manager.to_model(history, "prompt")
    made = [call["id"] for said in shown for call in said.get("tool_calls", [])]
    assert [said["tool_call_id"] for said in shown if said["role"] == "tool"] == made


@given(STREAMS, st.booleans(), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_any_stream_is_read_to_its_end(chunks: list[Chunk], on_stream: bool, limit: int) -> None:
    check(chunks, on_stream=on_stream, limit=limit)


@pytest.mark.slow
@pytest.mark.timeout(900)
@given(STREAMS, st.booleans(), st.integers(0, 2))
@settings(max_examples=10_000, deadline=None)
def test_ten_thousand_streams_are_read_to_their_end(chunks: list[Chunk], on_stream: bool, limit: int) -> None:
    check(chunks, on_stream=on_stream, limit=limit)


def random_reply(chance: random.Random) -> Reply:
    deltas: list[dict[str, Any]] = [{"content": "I say: "}]
    for _ in range(chance.randrange(12)):
        if chance.random() < 0.6:
            deltas.append({"content": chance.choice(CLEAN)})
        else:
            function = {"name": chance.choice(NAMES), "arguments": chance.choice(ARGUMENTS)}
            deltas.append(
                {"tool_calls": [{"index": chance.randrange(3), "id": chance.choice("abc"), "function": function}]}
            )
    return Reply(deltas, finish_reason=chance.choice(("stop", "length", "tool_calls")))


@pytest.mark.parametrize("seed", range(12))
async def test_any_run_ends(pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel, seed: int) -> None:
    chance = random.Random(seed)
    ctx, log = await make_context(pool, http, settings, "openai/m")
    ctx.tools = Counting().registry
    ctx.config = type(ctx.config)(
        max_iterations=8,
        execute_on_stream=chance.random() < 0.5,
        tool_execution=chance.choice(("sequential", "parallel")),
        max_xml_tool_calls=chance.choice((0, 1, 3)),
    )
    fake.script(*(random_reply(chance) for _ in range(8)))
    await run_agent(ctx)
    assert log.events[-1].content["status_type"] == "finish"
    assert len(fake.requests) == ctx.answers <= 8
    again, retold = resumed(ctx)
    await run_agent(again)
    assert retold.events[-1].content == log.events[-1].content
    assert (again.answers, again.usage, len(fake.requests)) == (ctx.answers, ctx.usage, ctx.answers)

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson
import pytest
from httpx2 import AsyncByteStream, Request, Response
from hypothesis import given
from hypothesis import strategies as st

from agent.llm.anthropic_dialect import read_stream
from agent.llm.anthropic_events import NOTHING, Reader
from agent.llm.chunk import Chunk, ToolCallPart, Usage
from agent.llm.failures import Reported
from tests.anthropic_wire import sse


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


ANSWER: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 70, "output_tokens": 1}},
    },
    {"type": "ping"},
    start(0, type="thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="Löt me "),
    delta(0, "thinking_delta", thinking="see. 思"),
    delta(0, "signature_delta", signature="c2ln"),
    stop(0),
    start(1, type="text", text=""),
    delta(1, "text_delta", text="I loök: 🎉"),
    stop(1),
    start(2, type="thinking", thinking="", signature=""),
    delta(2, "signature_delta", signature="b21pdHRlZA=="),
    stop(2),
    start(3, type="tool_use", id="toolu_1", name="look", input={}),
    delta(3, "input_json_delta", partial_json=""),
    delta(3, "input_json_delta", partial_json='{"at'),
    delta(3, "input_json_delta", partial_json='":1}'),
    stop(3),
    start(4, type="redacted_thinking", data="eHg="),
    stop(4),
    start(5, type="tool_use", id="toolu_2", name="list", input={}),
    stop(5),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use"},
        "usage": {
            "output_tokens": 9,
            "cache_creation_input_tokens": 25,
            "cache_read_input_tokens": None,
            "output_tokens_details": {"thinking_tokens": 4},
        },
    },
    {"type": "message_stop"},
]
THOUGHT = {"type": "thinking", "thinking": "Löt me see. 思", "signature": "c2ln"}
OMITTED = {"type": "thinking", "thinking": "", "signature": "b21pdHRlZA==", "position": [9, 0]}
REDACTED = {"type": "redacted_thinking", "data": "eHg=", "position": [9, 1]}
CHUNKS = [
    Chunk(reasoning="Löt me "),
    Chunk(reasoning="see. 思"),
    Chunk(text="I loök: 🎉"),
    Chunk(tool_calls=(ToolCallPart(0, "toolu_1", "look"),)),
    Chunk(tool_calls=(ToolCallPart(0, arguments='{"at'),)),
    Chunk(tool_calls=(ToolCallPart(0, arguments='":1}'),)),
    Chunk(tool_calls=(ToolCallPart(1, "toolu_2", "list"),)),
    Chunk(tool_calls=(ToolCallPart(1, arguments="{}"),)),
    Chunk(
        thinking_blocks=(THOUGHT, OMITTED, REDACTED),
        finish_reason="tool_calls",
        usage=Usage(100, 9, 109, 70, 25, 4),
    ),
]
BYTES = b": hello\n\n" + b"".join(map(sse, ANSWER))


class Pieces(AsyncByteStream):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def read_all(events: Sequence[Any]) -> list[Chunk]:
    reader = Reader()
    return [chunk for chunk in map(reader.read, events) if chunk != NOTHING]


async def read_bytes(pieces: Sequence[bytes]) -> list[Chunk]:
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    response = Response(200, headers=headers, stream=Pieces(pieces), request=Request("POST", "http://x/v1/messages"))
    async with aclosing(read_stream(response)) as chunks:
        return [chunk async for chunk in chunks]


def test_a_whole_answer_becomes_its_chunks() -> None:
    assert read_all(ANSWER) == CHUNKS


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % len(data) for place in places})
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(st.lists(st.integers(0, len(BYTES)), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
async def test_any_cut_of_the_bytes_gives_the_same_chunks(places: list[int], newline: bytes) -> None:
    assert await read_bytes(cut(BYTES.replace(b"\n", newline), places)) == CHUNKS


async def test_bytes_that_come_one_by_one_give_the_same_chunks() -> None:
    assert await read_bytes([bytes([byte]) for byte in BYTES]) == CHUNKS


def test_arguments_that_came_with_the_start_of_a_call_are_said_at_its_end() -> None:
    chunks = read_all([start(0, type="tool_use", id="t", name="look", input={"at": 1}), stop(0)])
    assert chunks[-1].tool_calls == (ToolCallPart(0, arguments='{"at":1}'),)


def test_thinking_that_cannot_go_back_is_not_kept() -> None:
    unsigned = [start(0, type="thinking", thinking="a"), delta(0, "thinking_delta", thinking="b"), stop(0)]
    unstorable = [
        start(1, type="thinking", thinking=""),
        delta(1, "thinking_delta", thinking="a\x00b"),
        delta(1, "signature_delta", signature="s"),
        stop(1),
    ]
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    assert read_all([*unsigned, *unstorable, end]) == [
        Chunk(reasoning="a"),
        Chunk(reasoning="b"),
        Chunk(reasoning="ab"),
        Chunk(finish_reason="stop"),
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("of_tomorrow", "of_tomorrow"),
    ],
)
def test_an_end_has_openais_word(theirs: str, ours: str) -> None:
    assert read_all([{"type": "message_delta", "delta": {"stop_reason": theirs}}]) == [Chunk(finish_reason=ours)]


def test_an_error_event_says_which_status_it_stands_for() -> None:
    with pytest.raises(Reported) as failed:
        Reader().read({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert (failed.value.status, failed.value.told) == ("529", "Overloaded")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


def spoil(events: Sequence[Mapping[str, Any]], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The answer with fields of some events exchanged for something else."""
    spoiled = [orjson.loads(orjson.dumps(event)) for event in events]
    for place, value in zip(places, values, strict=False):
        event = spoiled[place % len(spoiled)]
        names = sorted(event)
        event[names[place % len(names)]] = value
        inner = event.get("delta") or event.get("content_block")
        if isinstance(inner, dict) and inner:
            inner[sorted(inner)[place % len(inner)]] = value
    return spoiled


@given(st.lists(st.integers(0, 10_000), max_size=6), st.lists(JSON, min_size=6, max_size=6))
def test_events_of_any_shape_never_raise_anything_but_their_own_error(places: list[int], values: list[Any]) -> None:
    with suppress(Reported):
        read_all(spoil(ANSWER, places, values))

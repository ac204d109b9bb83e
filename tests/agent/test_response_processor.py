from collections.abc import Sequence
from datetime import UTC, datetime
from functools import reduce
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from agent import response_processor
from agent.llm.chunk import Chunk, Usage
from agent.response_processor import Answer, fold
from services.messages import Message
from services.runs.events import Event

RUN = uuid4()
CHUNKS = st.lists(st.builds(Chunk, text=st.text(max_size=5), reasoning=st.text(max_size=5)))


def events_of(chunks: Sequence[Chunk], *, streamed: bool = True) -> list[Event]:
    answer, events = Answer(), []
    for chunk in chunks:
        events += response_processor.events(answer, chunk, RUN, streamed=streamed)
        answer = fold(answer, chunk)
    return events


@given(CHUNKS)
def test_what_was_streamed_is_what_is_stored(chunks: list[Chunk]) -> None:
    said = [event.content for event in events_of(chunks) if event.type == "assistant"]
    stored = response_processor.message(reduce(fold, chunks, Answer()), RUN, "m").content
    assert "".join(content["content"] for content in said) == stored["content"]
    assert "".join(content.get("reasoning_content", "") for content in said) == stored.get("reasoning_content", "")


@given(CHUNKS)
def test_the_start_is_said_once_and_before_the_first_word(chunks: list[Chunk]) -> None:
    events = events_of(chunks)
    starts = [n for n, event in enumerate(events) if event.content.get("status_type") == "assistant_response_start"]
    assert starts == ([0] if any(chunk.speaks for chunk in chunks) else [])


def test_a_fold_leaves_the_answer_before_it_as_it_was() -> None:
    before = Answer(text="a")
    after = fold(before, Chunk(text="b", finish_reason="stop", usage=Usage(1, 2, 3)))
    assert before == Answer(text="a")
    assert after == Answer(spoke=True, text="ab", finish_reason="stop", usage=Usage(1, 2, 3))
    assert fold(after, Chunk()) == after


def test_chunks_have_the_shape_that_frontends_know() -> None:
    start, thought, word = events_of([Chunk(reasoning="hm"), Chunk(text="Hi")])
    assert (start.type, start.content["status_type"]) == ("status", "assistant_response_start")
    assert thought.content == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert word.content == {"role": "assistant", "content": "Hi"}
    for event in (thought, word):
        assert (event.type, event.is_llm_message, event.message_id) == ("assistant", True, None)
        assert event.metadata == {"stream_status": "chunk", "thread_run_id": str(RUN)}


def test_without_streaming_only_the_start_is_said() -> None:
    assert len(events_of([Chunk(text="a"), Chunk(text="b")], streamed=False)) == 1


def test_the_complete_event_is_the_stored_row() -> None:
    answer = Answer(text="Hi", finish_reason="length", usage=Usage(1, 2, 3))
    new = response_processor.message(answer, RUN, "openai/m")
    now = datetime.now(UTC)
    row = Message(
        uuid4(), 1, uuid4(), RUN, new.type, new.is_llm_message, new.content, new.metadata, None, None, now, now
    )
    event = response_processor.completed(row)
    assert event.content == {"role": "assistant", "content": "Hi"}
    assert event.metadata == {
        "stream_status": "complete",
        "thread_run_id": str(RUN),
        "model": "openai/m",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    assert (event.message_id, event.created_at, event.updated_at) == (row.message_id, now, now)
    assert response_processor.finished(row, RUN).content == {"status_type": "finish", "finish_reason": "length"}

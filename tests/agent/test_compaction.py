from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from agent import compaction, summary, thread_manager, tokens
from agent.compaction import Window
from agent.models import Model
from services.messages import Message

PROSE = "The quick brown fox jumps over the lazy dog. "


def stored(position: int, kind: str, content: Any, **metadata: Any) -> Message:
    now = datetime.now(UTC)
    return Message(uuid4(), position, uuid4(), None, kind, True, content, metadata, None, None, now, now)


def said(position: int, role: str, text: str) -> Message:
    return stored(position, role, {"role": role, "content": text})


def turn(position: int, result: str) -> list[Message]:
    """An answer with a call, and the result of the call."""
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "look", "arguments": "{}"}}
    answer = stored(position, "assistant", {"role": "assistant", "content": "I look.", "tool_calls": [call]})
    content = {"role": "tool", "tool_call_id": "c", "name": "look", "content": result}
    told = stored(position + 1, "tool", content, tool_call_id="c", assistant_message_id=str(answer.message_id))
    return [answer, told]


def thread(turns: int, result: str) -> list[Message]:
    task = said(0, "user", "This is the task.")
    return [task, *(each for n in range(turns) for each in turn(1 + 2 * n, result))]


def shown(conversation: Sequence[Message], limits: dict[UUID, int]) -> list[dict[str, Any]]:
    return thread_manager.to_model(conversation, "Be good.", limits)


def measures(window: Window) -> tuple[compaction.Measure, ...]:
    return (compaction.shorten_results, *compaction.last_resorts(window))


def tokens_of(conversation: Sequence[Message], window: Window) -> int:
    return sum(map(tokens.of_message, shown(conversation, window.limits)))


def test_what_fits_is_shown_as_it_is() -> None:
    window = Window(10_000)
    conversation = thread(3, PROSE)
    assert window.fit(conversation, measures(window))
    assert not window.limits


def test_old_results_are_shortened_first_and_say_how_to_read_them() -> None:
    window = Window(20_000)
    conversation = thread(10, PROSE * 250)
    assert window.fit(conversation, (compaction.shorten_results,))
    limited = [each for each in conversation if each.message_id in window.limits]
    assert limited
    assert all(each.type == "tool" for each in limited)
    assert not {each.message_id for each in conversation[-compaction.RECENT :]} & window.limits.keys()
    results = [each for each in shown(conversation, window.limits) if each["role"] == "tool"]
    assert f"expand_message with message_id {limited[0].message_id}" in results[0]["content"]
    assert results[-1]["content"] == PROSE * 250
    assert tokens_of(conversation, window) < window.size


@pytest.mark.parametrize("turns", [40, 400])
def test_a_thread_far_too_long_keeps_its_task_and_its_newest_turns(turns: int) -> None:
    window = Window(3_000)
    conversation = thread(turns, PROSE * 20)
    assert window.fit(conversation, measures(window))
    told = shown(conversation, window.limits)
    assert told[1]["content"] == "This is the task."
    assert told[-1]["content"] == PROSE * 20
    assert tokens_of(conversation, window) < window.size
    made = [call["id"] for each in told for call in each.get("tool_calls", ())]
    assert len(made) == sum(each["role"] == "tool" for each in told)
    assert all(thread_manager.NO_RESULT not in str(each["content"]) for each in told)


def test_one_giant_is_shortened_rather_than_everything_else() -> None:
    window = Window(10_000)
    conversation = [*thread(3, PROSE), said(90, "user", PROSE * 9_000)]
    assert window.fit(conversation, measures(window))
    assert window.limits.keys() == {conversation[-1].message_id}
    assert tokens_of(conversation, window) < window.size


def test_a_window_too_small_for_anything_is_told() -> None:
    window = Window(50)
    assert not window.fit(thread(3, PROSE * 100), measures(window))


def test_what_was_shortened_stays_so_and_the_next_turns_fit_beside_it() -> None:
    window = Window(20_000)
    conversation = thread(20, PROSE * 250)
    window.fit(conversation, measures(window))
    before = dict(window.limits)
    conversation += turn(100, PROSE)
    assert window.fit(conversation, measures(window))
    assert window.limits == before


def test_the_provider_counts_and_we_learn() -> None:
    window = Window(10_000)
    conversation = thread(10, PROSE * 60)
    assert not window.overfull(conversation)
    window.calibrate(estimated=1_000, counted=2_500)
    assert window.overfull(conversation)
    window.calibrate(estimated=1_000, counted=1_000_000)
    assert window.factor == compaction.MOST_FACTOR
    window.calibrate(estimated=0, counted=5)
    assert window.factor == compaction.MOST_FACTOR


def test_long_arguments_of_an_old_call_are_shortened_and_stay_json() -> None:
    call = {
        "id": "c",
        "type": "function",
        "index": 0,
        "function": {"name": "f", "arguments": '{"text": "%s"}' % ("x" * 9_000)},
    }
    answer = stored(1, "assistant", {"role": "assistant", "content": "", "tool_calls": [call]})
    told = shown([answer], {answer.message_id: 1_000})
    assert len(told[1]["tool_calls"][0]["function"]["arguments"]) < 1_500
    assert orjson.loads(told[1]["tool_calls"][0]["function"]["arguments"])["text"].startswith("xxx")


def test_room_is_kept_for_the_answer() -> None:
    assert compaction.size_of_window(Model(100_000, 10_000)) == int(90_000 * compaction.SAFETY)
    assert compaction.size_of_window(Model(8_000, 8_000)) == int(6_000 * compaction.SAFETY)
    assert compaction.size_of_window(Model(8_000, 1_000), set_size=50_000) == int(49_000 * compaction.SAFETY)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (PROSE * 100, 1.0, 1.3),
        ("敏捷的棕色狐狸跳过了懒狗。" * 100, 2.8, 5.0),
        ('{"id":12345,"name":"a","tags":["x","y"],"ok":true},' * 100, 1.6, 2.8),
        ("aGVsbG8gd29ybGQhIFRoaXMgaXMgYmFzZTY0IGRhdGEu" * 50, 2.6, 2.8),
    ],
    ids=["prose", "Chinese", "JSON", "base64"],
)
def test_a_quarter_of_the_characters_is_corrected_for_each_kind_of_text(text: str, least: float, most: float) -> None:
    assert least <= tokens.of_text(text) / (len(text) / 4) <= most


def test_a_summary_covers_no_call_whose_result_comes_later() -> None:
    answer, result = turn(20, "found")
    between = [said(21 + n, "user", PROSE * 50) for n in range(7)]
    conversation = [*(said(n, "user", PROSE) for n in range(20)), answer, *between, replace(result, position=30)]
    covered = summary.covered_part(conversation, Window(1_000), uuid4())
    assert covered == conversation[:20]


def test_a_summary_covers_neither_half_of_an_answer_in_two_parts() -> None:
    (first, found), (second, seen) = turn(20, "found"), turn(21, "seen")
    rest = [said(30 + n, "user", PROSE) for n in range(5)]
    conversation = [*(said(n, "user", PROSE) for n in range(20)), first, second, found, seen, *rest]
    assert summary.covered_part(conversation, Window(100), uuid4()) == conversation[:20]


def test_a_summary_leaves_a_runs_newest_answer_to_be_resumed() -> None:
    run_id = uuid4()
    answer, result = turn(20, "found")
    rest = [said(30 + n, "user", PROSE) for n in range(10)]
    conversation = [*(said(n, "user", PROSE) for n in range(20)), replace(answer, agent_run_id=run_id), result, *rest]
    assert summary.covered_part(conversation, Window(100), run_id) == conversation[:20]

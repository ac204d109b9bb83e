from itertools import count, pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent import native_calls
from agent.calls import ToolCall
from agent.llm.chunk import ToolCallPart
from agent.native_calls import NativeCalls


def assembled(*parts: ToolCallPart) -> list[ToolCall]:
    calls = NativeCalls(count().__next__)
    for part in parts:
        calls.add(part)
    return calls.take(ended=True)


def told(calls: list[ToolCall]) -> list[tuple[int, str, str, str | dict[str, object]]]:
    return [(call.index, call.call_id, call.name, call.arguments) for call in calls]


def test_fragments_are_put_together_by_their_index() -> None:
    calls = assembled(
        ToolCallPart(0, "a", "look", '{"x"'),
        ToolCallPart(1, "b", "act", ""),
        ToolCallPart(0, arguments=": 1}"),
        ToolCallPart(1, arguments="{}"),
    )
    assert told(calls) == [(0, "a", "look", '{"x": 1}'), (1, "b", "act", "{}")]


def test_calls_that_all_have_the_same_index_are_told_apart_by_their_ids() -> None:
    calls = assembled(ToolCallPart(0, "a", "look", "{}"), ToolCallPart(0, "b", "look", "{}"))
    assert told(calls) == [(0, "a", "look", "{}"), (1, "b", "look", "{}")]


def test_a_name_and_an_id_that_are_repeated_with_every_fragment_count_once() -> None:
    calls = assembled(ToolCallPart(0, "a", "look", "{"), ToolCallPart(0, "a", "look", "}"))
    assert told(calls) == [(0, "a", "look", "{}")]


def test_calls_without_ids_or_with_the_same_one_get_their_own() -> None:
    calls = assembled(ToolCallPart(0, "", "look"), ToolCallPart(1, "", "look"), ToolCallPart(2, "a", "look"),
                      ToolCallPart(3, "a", "look"))  # fmt: skip
    assert len({call.call_id for call in calls}) == 4
    assert all(call.call_id for call in calls)


def test_a_call_without_a_name_is_none() -> None:
    assert assembled(ToolCallPart(0, "a", "", "{}")) == []


def test_until_the_answer_ends_the_newest_call_may_grow() -> None:
    calls = NativeCalls(count().__next__)
    calls.add(ToolCallPart(0, "a", "look", "{}"))
    assert calls.take(ended=False) == []
    calls.add(ToolCallPart(1, "b", "act", "{"))
    assert [call.name for call in calls.take(ended=False)] == ["look"]
    calls.add(ToolCallPart(1, arguments="}"))
    assert told(calls.take(ended=True)) == [(1, "b", "act", "{}")]


def test_calls_without_end_are_bounded() -> None:
    parts = [ToolCallPart(n, f"c{n}", "look", "{}") for n in range(1000)]
    assert len(assembled(*parts)) == native_calls.MAX_CALLS


@given(st.text(), st.lists(st.integers(min_value=0), max_size=10))
def test_arguments_cut_anywhere_are_the_same(arguments: str, cuts: list[int]) -> None:
    edges = sorted({0, len(arguments), *(cut % (len(arguments) + 1) for cut in cuts)})
    pieces = [arguments[start:end] for start, end in pairwise(edges)]
    [call] = assembled(ToolCallPart(0, "a", "look"), *(ToolCallPart(0, arguments=piece) for piece in pieces))
    assert call.arguments == arguments

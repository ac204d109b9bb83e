import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tools import lines
from agent.tools.lines import Lines


def read(data: bytes, size: int, first: int = 1, last: int | None = None) -> Lines:
    found = Lines(first, last)
    for start in range(0, len(data), size):
        found.feed(data[start : start + size])
        if found.full:
            break
    return found


@given(
    st.lists(st.text("ab\r\u2028é", max_size=5), max_size=8),
    st.integers(1, 9),
    st.none() | st.integers(0, 5),
    st.integers(1, 7),
)
def test_a_range_is_the_same_however_the_file_is_cut(texts: list[str], first: int, more: int | None, size: int) -> None:
    data = "\n".join(texts).encode()
    last = None if more is None else first + more
    expected = b"".join(lines.split(data)[first - 1 : last])
    assert read(data, size, first, last).text == expected.decode()


def test_reading_ends_with_the_last_line_that_was_asked_for() -> None:
    found = read(b"line\n" * 1000, size=50, first=3, last=5)
    assert found.full
    assert len(found.taken) < 100


def test_a_long_file_is_cut_at_a_line_and_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BYTES", 10)
    assert read(b"one\ntwo\nthree\nfour\n", 5, 2).text == "two\nthree\n[the file goes on: read it from start_line 4]"


def test_a_line_that_is_too_long_alone_is_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BYTES", 10)
    shown = read(b"a" * 100 + b"\nb\n", 7).text
    assert shown == "a" * 10 + "\n[line 1 is longer than this; the rest of it is not shown]"

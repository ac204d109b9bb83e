import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import xml_calls
from agent.xml_calls import XmlCall, XmlCalls

TAGS = frozenset({"ask", "complete", "web-browser-takeover", "web_browser_takeover"})
PIECES = (
    "<function_calls>", "</function_calls>", '<invoke name="draw">', "<invoke name='a>b'>", "</invoke>", "<invoke>",
    '<parameter name="x">', "</parameter>", "<ask>", "</ask>", '<ask attachments="a, b">', "<ask a='>' b=\"'\">",
    "<complete/>", "<complete />", "</complete>", "<complete>", "<asks>", "<web-browser-takeover>", "<ask it's>",
    "</web-browser-takeover>", "<b>", "a < b", "\n", "\n\n", "`", "``", "```", "````", "```python\n", "\n```\n", "~~~",
    "> ```\n", "1. ```sh\n",
    "    ", "\t", "\r\n", "\\", "/", ">", "<", "'", '"', "&quot;", "é", "\ud800", "\x00", "text",
    "<ask>a</ask>", "<ask a='1'>`b`</ask>",
    "<function_calls><invoke name='d'><parameter name='x'>1</parameter></invoke>",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


def calls_of(text: str, cuts: list[int] | None = None) -> list[XmlCall]:
    parser = XmlCalls(TAGS)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or [])})
    return [call for start, end in pairwise(edges) for call in parser.feed(text[start:end])]


def shown(text: str) -> list[tuple[str, dict[str, str], str | None]]:
    return [(call.name, call.given, call.body) for call in calls_of(text)]


def check_every_cut(text: str) -> None:
    whole = calls_of(text)
    assert calls_of(text, list(range(len(text)))) == whole
    for cut in range(len(text)):
        assert calls_of(text, [cut]) == whole


@given(TEXTS, st.lists(st.integers(min_value=0), max_size=20))
@settings(max_examples=400, deadline=None)
def test_a_text_cut_anywhere_gives_the_same_calls(text: str, cuts: list[int]) -> None:
    assert calls_of(text, cuts) == calls_of(text)
    assert calls_of(text, list(range(len(text)))) == calls_of(text)


@pytest.mark.slow
@pytest.mark.timeout(900)
@given(TEXTS, st.lists(st.integers(min_value=0), max_size=20))
@settings(max_examples=10_000, deadline=None)
def test_ten_thousand_texts_cut_anywhere_give_the_same_calls(text: str, cuts: list[int]) -> None:
    assert calls_of(text, cuts) == calls_of(text)
    assert calls_of(text, list(range(len(text)))) == calls_of(text)


BLOCK = """Let me look.
<function_calls>
<invoke name="draw">
<parameter name="text">
a < b && "c"
</parameter>
<parameter name="size">3</parameter>
</invoke>
<invoke name="complete"></invoke>
</function_calls>
Done. <ask attachments="a&amp;b.txt, c.md" kind='x > "y"'>Which
one?</ask> <complete/>"""


def test_both_styles_are_found_in_order() -> None:
    assert shown(BLOCK) == [
        ("draw", {"text": 'a < b && "c"', "size": "3"}, None),
        ("complete", {}, None),
        ("ask", {"attachments": "a&b.txt, c.md", "kind": 'x > "y"'}, "Which\none?"),
        ("complete", {}, ""),
    ]
    check_every_cut(BLOCK)


def test_a_call_knows_where_it_ends() -> None:
    text = "Hm. <ask>a</ask> more <complete/>!"
    assert [text[: call.end] for call in calls_of(text)] == ["Hm. <ask>a</ask>", "Hm. <ask>a</ask> more <complete/>"]


@pytest.mark.parametrize(
    "text",
    [
        "```\n<ask>no</ask>\n```\n",
        "```xml\n<ask>no</ask>\n``` \nyes: ",
        "> ```\n> <ask>no</ask>\n> ```\n",
        "1. Like this:\n   ```xml\n   <ask>no</ask>\n   ```\n",
        "- ```xml\n  <ask>no</ask>\n  ```\n",
        "~~~\n```\n<ask>no</ask>\n~~~\n",
        "````\n```\n<ask>no</ask>\n```\n<ask>no</ask>\n````\n",
        "```\n``` not the end\n<ask>no</ask>\n```\n",
        "Write `<ask>no</ask>`, or ``<ask>`no`</ask>``. ",
        "```<ask>no</ask>```\n",
        "A lone ` <ask>no</ask>\n",
        "<askew>no</askew> <b>no</b> <Ask>no</Ask> < ask>no</ask> <ask no>no</ask> ",
        "<invoke name='draw'></invoke>",
        "~~struck~~ ",
        "```a`b\n",
    ],
)
def test_what_is_code_or_no_known_tag_is_left_alone_and_what_follows_is_not(text: str) -> None:
    assert shown(f"{text}<ask>yes</ask>") == [("ask", {}, "yes")]
    check_every_cut(f"{text}<ask>yes</ask>")


def test_an_open_fence_hides_all_that_follows() -> None:
    assert shown("```python\n<ask>no</ask>\n") == []


def test_a_fence_inside_a_call_belongs_to_the_call() -> None:
    body = "# Title\n```\ncode `\n```\n<invoke name='x'>"
    assert shown(f"<ask>\n{body}\n</ask><complete/>") == [("ask", {}, body), ("complete", {}, "")]
    value = f'<function_calls><invoke name="w"><parameter name="text">{body}</parameter></invoke></function_calls>'
    assert shown(value) == [("w", {"text": body}, None)]


@pytest.mark.parametrize(
    ("text", "unfinished"),
    [
        ("<ask>what", ("ask", False)),
        ('<function_calls><invoke name="draw"><parameter name="x">1', ("draw", True)),
        ("<function_calls>", None),
        ("<ask>what</ask>", None),
        ("plain", None),
        ("```\n<ask>", None),
        ("<ask", None),
    ],
)
def test_a_call_that_was_not_ended_is_known(text: str, unfinished: tuple[str, bool] | None) -> None:
    parser = XmlCalls(TAGS)
    parser.feed(text)
    assert parser.unfinished == unfinished


def test_a_missing_end_of_an_invoke_is_forgiven() -> None:
    text = '<function_calls><invoke name="a"><parameter name="x">1</parameter></function_calls> <complete/>'
    assert shown(text) == [("a", {"x": "1"}, None), ("complete", {}, "")]


def test_an_invoke_without_a_name_is_still_a_call() -> None:
    assert shown("<function_calls><invoke></invoke></function_calls>") == [("invoke", {}, None)]


def test_calls_without_end_are_bounded() -> None:
    assert len(calls_of("<complete/>" * 1000)) == xml_calls.MAX_CALLS
    invokes = '<invoke name="a"></invoke>' * 1000
    assert len(calls_of(f"<function_calls>{invokes}</function_calls>")) == xml_calls.MAX_CALLS
    assert shown(f"<ask a='{'x' * 9000}'>no</ask><complete/>") == [("complete", {}, "")]


@pytest.mark.parametrize(
    "piece",
    ["word ", "<ask '", '<ask "', "<ask a='>", "`", "```\n", "<b>", "\n", ">", "<function_calls", "<ask>body ", "` ``"],
)
def test_a_text_costs_the_same_per_character_however_long_it_is(piece: str) -> None:
    def seconds(size: int) -> float:
        chunks = [text[start : start + 40] for text in [piece * (size // len(piece))] for start in range(0, size, 40)]
        parser, began = XmlCalls(TAGS), time.process_time()
        for chunk in chunks:
            parser.feed(chunk)
        return time.process_time() - began

    assert any(seconds(400_000) < 20 * max(seconds(40_000), 0.005) for _ in range(3)), "once is enough: others work too"

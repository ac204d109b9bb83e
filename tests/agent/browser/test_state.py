import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest

from agent.browser import actions, state
from agent.browser.state import Known, State, TabShown
from agent.tools.base import ToolFailed

PAGE: dict[str, Any] = {
    "url": "http://a/", "title": "A", "width": 1024, "height": 768, "above": 0, "below": 5, "count": 1, "text": "t",
    "elements": [{"index": 0, "target": "x.0", "tag": "a", "text": "go", "href": "/b", "checked": True}],
}  # fmt: skip


def test_playwright_is_not_loaded_before_a_browser_is_used() -> None:
    """An idle worker is to stay under 100 MB (docs/adr/0010-browser.md)."""
    loads = "import sys, worker.actors, agent.tools.browser; sys.exit('playwright' in sys.modules)"
    subprocess.run([sys.executable, "-c", loads], check=True, env={"BROKER": "redis"})


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("example.org/x", "https://example.org/x"),
        ("localhost:3000/a", "http://localhost:3000/a"),
        ("127.0.0.1:80", "http://127.0.0.1:80"),
        (" http://a.b/ ", "http://a.b/"),
        ("example.org:8443", "https://example.org:8443"),
        ("about:blank", "about:blank"),
    ],
)
def test_addresses_are_completed_as_a_person_would_mean_them(given: str, opened: str) -> None:
    assert actions.address(given) == opened


@pytest.mark.parametrize("given", ["javascript:alert(1)", "mailto:a@b", "ftp://a.b/"])
def test_what_is_no_address_of_a_page_is_refused(given: str) -> None:
    with pytest.raises(ToolFailed, match="does not open"):
        actions.address(given)


def test_what_is_stored_is_what_the_next_call_finds_its_elements_by() -> None:
    shown = State(state.read(PAGE), [TabShown("T2", "http://b/", "B"), TabShown("T1", "http://a/", "A")], "T1", "QUI=")
    stored = state.message(shown, uuid4(), uuid4())
    assert stored.content["interactive_elements"] == '[0]<a href="/b" checked>go</a>'
    assert (stored.content["current_tab"], stored.content["screenshot_base64"]) == (1, "QUI=")
    assert (stored.metadata["target"], stored.metadata["tabs"]) == ("T1", ["T2", "T1"])
    assert stored.metadata["elements"] == {"0": "x.0"}
    assert Known.of(None) == Known()


@pytest.mark.parametrize(
    "change", [{"elements": None}, {"count": "many"}, {"elements": [7]}, {"elements": [{"tag": "a"}]}, {"below": None}]
)
def test_what_is_no_page_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        state.read({**PAGE, **change})


def test_a_page_without_bounds_is_bounded() -> None:
    endless = "x" * 100_000
    element = {"index": 1, "target": endless, "tag": endless, "text": endless, "href": endless, "new": endless}
    seen = state.read({**PAGE, "title": endless, "text": endless, "elements": [element] * 10_000})
    assert len(seen.elements) == state.MOST_ELEMENTS
    assert max(len(str(each)) for each in seen.elements) < 1_500
    assert len(seen.title) + len(seen.text) < 7_000

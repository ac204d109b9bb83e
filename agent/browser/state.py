"""A browser as it stands: what is stored of it as a `browser_state` message, and what a call's result says. Pure."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from services.messages import Message, NewMessage

WORDS_CHARS = 4_000
TITLE_CHARS, URL_CHARS, TEXT_CHARS, ATTRIBUTE_CHARS = 300, 2_000, 6_000, 200
MOST_ELEMENTS = 200
ATTRIBUTES = (
    "index", "target", "tag", "type", "name", "role", "aria-label", "placeholder", "title", "alt", "href", "text",
    "value",
)  # fmt: skip
CONDITIONS = ("checked", "disabled")


@dataclass(frozen=True, slots=True)
class TabShown:
    target: str
    url: str
    title: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a page showed. `elements`: those that one may act on, each with its `index` and how it is found again."""

    url: str = ""
    title: str = ""
    width: int = 0
    height: int = 0
    above: int = 0
    below: int = 0
    count: int = 0
    elements: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """`target` is the current tab, as the browser names it."""

    seen: Seen = Seen()
    tabs: list[TabShown] = field(default_factory=list)
    target: str = ""
    screenshot: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What the model was last told: the tabs in order and the current one, and the elements by their numbers."""

    target: str = ""
    tabs: list[str] = field(default_factory=list)
    elements: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Message | None) -> "Known":
        """A client may have stored anything."""
        metadata = stored.metadata if stored else {}
        target, tabs, elements = (metadata.get(name) for name in ("target", "tabs", "elements"))
        return cls(
            str(target or ""),
            list(map(str, tabs)) if isinstance(tabs, list) else [],
            {str(index): str(found) for index, found in elements.items()} if isinstance(elements, dict) else {},
        )


def read(answer: dict[str, Any]) -> Seen:
    """What a page is said to show, by whoever answers: bounded and checked.

    Raises: KeyError, TypeError, ValueError.
    """
    return Seen(
        url=str(answer["url"])[:URL_CHARS],
        title=str(answer["title"])[:TITLE_CHARS],
        width=int(answer["width"]),
        height=int(answer["height"]),
        above=int(answer["above"]),
        below=int(answer["below"]),
        count=int(answer["count"]),
        elements=[element(each) for each in answer["elements"][:MOST_ELEMENTS]],
        text=str(answer["text"])[:TEXT_CHARS],
    )


def element(given: dict[str, Any]) -> dict[str, Any]:
    words = {name: str(given[name])[:ATTRIBUTE_CHARS] for name in ATTRIBUTES if name in given}
    conditions = {name: True for name in CONDITIONS if given.get(name) is True}
    return {**words, **conditions, "index": int(given["index"])}


def message(state: State, run_id: UUID, message_id: UUID) -> NewMessage:
    seen, targets = state.seen, [tab.target for tab in state.tabs]
    content = {
        "url": seen.url,
        "title": seen.title,
        "tabs": [{"tab_id": place, "url": tab.url, "title": tab.title} for place, tab in enumerate(state.tabs)],
        "current_tab": targets.index(state.target) if state.target in targets else 0,
        "viewport_width": seen.width,
        "viewport_height": seen.height,
        "pixels_above": seen.above,
        "pixels_below": seen.below,
        "element_count": seen.count,
        "interactive_elements": "\n".join(map(line, seen.elements)),
        "text": seen.text,
        "screenshot_base64": state.screenshot,
        "timestamp": datetime.now(UTC).isoformat(),
    }
    found = {str(each["index"]): each["target"] for each in seen.elements}
    metadata = {"thread_run_id": str(run_id), "target": state.target, "tabs": targets, "elements": found}
    return NewMessage("browser_state", content, metadata, is_llm_message=False, message_id=message_id)


def line(each: dict[str, Any]) -> str:
    """An element in the words of a page's source."""
    known = {name: value for name, value in each.items() if name not in ("index", "target", "tag", "text")}
    attributes = "".join(f" {name}" if value is True else f' {name}="{value}"' for name, value in known.items())
    return f"[{each['index']}]<{each['tag']}{attributes}>{each.get('text', '')}</{each['tag']}>"


def result(state: State, words: str, stored: UUID, *, success: bool) -> str:
    """What the model reads of a call, and frontends find the state by."""
    seen = state.seen
    told = {
        "success": success,
        "message": words[:WORDS_CHARS],
        "url": seen.url,
        "title": seen.title,
        "tabs": len(state.tabs),
        "element_count": seen.count,
        "pixels_above": seen.above,
        "pixels_below": seen.below,
        "message_id": str(stored),
    }
    return orjson.dumps(told).decode()

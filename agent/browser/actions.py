"""What one may do in a browser, step by step; each says what came of it. All raise ToolFailed and Hangs."""

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.tools.base import ToolFailed

if TYPE_CHECKING:
    from agent.browser.session import Session

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")  # noqa: S104 - a name, nothing listens
SCHEMES = ("http", "https", "file", "about", "data", "chrome")


def address(given: str) -> str:
    """What a person would type into the address bar, as a URL. Raises: ToolFailed."""
    url = given.strip()
    scheme = urlsplit(url).scheme if ":" in url else ""
    if scheme in SCHEMES:
        return url
    if scheme and not url[len(scheme) + 1 :].lstrip("/")[:1].isdigit() and "." not in scheme:
        raise ToolFailed(f"The browser does not open {scheme}: addresses.")
    local = url.startswith(LOOPBACK)
    return f"http://{url}" if local else f"https://{url}"


async def navigate_to(session: "Session", url: str) -> str:
    await session.open(address(url))
    return f"Navigated to {url}."


async def go_back(session: "Session") -> str:
    if not await session.back():
        raise ToolFailed("There is no page to go back to.")
    return "Went back."


async def click_element(session: "Session", index: int) -> str:
    place = await session.tab.ask_of(index, "point")
    if covered := place.get("covered"):
        raise ToolFailed(f"Element {index} cannot be clicked: it is covered by {covered}.")
    if place.get("tag") == "SELECT":
        raise ToolFailed(f"Element {index} is a dropdown: use browser_select_dropdown_option.")
    await session.tab.page.mouse.click(float(place["x"]), float(place["y"]))
    return f"Clicked element {index}."


async def click_coordinates(session: "Session", x: int, y: int) -> str:
    await session.tab.page.mouse.click(x, y)
    return f"Clicked at {x}, {y}."


async def input_text(session: "Session", index: int, text: str) -> str:
    prepared = await session.tab.ask_of(index, "prepare", text)
    if prepared.get("refused"):
        raise ToolFailed(f"Element {index} takes no text.")
    if not prepared.get("done"):
        await session.tab.page.keyboard.press("Delete")
        await session.tab.page.keyboard.insert_text(text)
    return f"Put the text into element {index}."


async def send_keys(session: "Session", keys: str) -> str:
    await session.tab.page.keyboard.press(keys)
    return f"Pressed {keys}."


async def scroll(session: "Session", pixels: int | None, direction: int) -> str:
    """By `pixels`, or by what is seen at once."""
    wanted = direction * pixels if pixels else (None if direction > 0 else -1)
    moved = int(await session.tab.ask("scroll", wanted))
    if moved == 0:
        return "The page does not scroll any further that way."
    return f"Scrolled {'down' if moved > 0 else 'up'} by {abs(moved)} pixels."


async def scroll_to_text(session: "Session", text: str) -> str:
    if not await session.tab.ask("scrollTo", text):
        raise ToolFailed("The page does not show that text.")
    return "Scrolled to the text."


async def switch_tab(session: "Session", tab_id: int) -> str:
    await session.switch(tab_id)
    return f"Tab {tab_id} is the current one now."


async def close_tab(session: "Session", tab_id: int) -> str:
    await session.close(tab_id)
    return f"Closed tab {tab_id}."


async def dropdown_options(session: "Session", index: int) -> str:
    found = await session.tab.ask_of(index, "options")
    if found.get("refused"):
        raise ToolFailed(f"Element {index} is no dropdown.")
    return "\n".join(["The options are:", *map(str, found["options"])])


async def select_option(session: "Session", index: int, text: str) -> str:
    chosen = await session.tab.ask_of(index, "select", text)
    if chosen.get("refused"):
        raise ToolFailed(f"Element {index} is no dropdown.")
    if chosen.get("missing"):
        raise ToolFailed(f"Element {index} has no option {text!r}: browser_get_dropdown_options shows what it has.")
    return f"Selected {text!r} in element {index}."


async def drag_drop(session: "Session", start: tuple[int, int], end: tuple[int, int]) -> str:
    mouse = session.tab.page.mouse
    await mouse.move(*start)
    await mouse.down()
    await mouse.move(*end, steps=10)
    await mouse.up()
    return f"Dragged from {start[0]}, {start[1]} to {end[0]}, {end[1]}."


async def wait(session: "Session", seconds: float) -> str:
    await asyncio.sleep(seconds)
    return f"Waited {seconds:g} seconds."

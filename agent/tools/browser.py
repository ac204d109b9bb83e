"""Tools that drive the browser of the project's sandbox; each call ends with how the browser stands then."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from agent.browser import actions, driver
from agent.context import Calling
from agent.tools.base import ToolFailed, ToolResult, tool

if TYPE_CHECKING:
    from agent.browser.session import Session

TIMEOUT = 300.0
LONGEST_WAIT_SECONDS = 60

Index = Annotated[int, Field(ge=0, description="The number of the element, as the state of the browser shows it.")]
TabId = Annotated[int, Field(ge=0, description="The number of the tab, as the state of the browser shows it.")]
Pixels = Annotated[int | None, Field(ge=1, le=100_000, description="How far; without it as far as is seen at once.")]
Across = Annotated[int, Field(ge=0, le=10_000, description="Pixels from the left.")]
Down = Annotated[int, Field(ge=0, le=10_000, description="Pixels from above.")]


async def act(calling: Calling, do: Callable[["Session"], Awaitable[str]], *, extra_seconds: float = 0) -> ToolResult:
    """Raises: ToolFailed."""
    if not driver.installed():
        raise ToolFailed(driver.MISSING)
    # What imports Playwright, in a thread: on the loop it would stall all runs for half a second.
    session = await asyncio.to_thread(importlib.import_module, "agent.browser.session")
    result: ToolResult = await session.act(calling, do, extra_seconds)
    return result


@tool(body="url", repeatable=True, timeout=TIMEOUT)
async def browser_navigate_to(
    calling: Calling, url: Annotated[str, Field(min_length=1, max_length=8_000, description="The address.")]
) -> ToolResult:
    """Open a page in the browser of the sandbox. What is served in the sandbox is at http://localhost:PORT.

    After each browser call you see its current state: elements by number, text, and a screenshot.
    """
    return await act(calling, lambda session: actions.navigate_to(session, url))


@tool(timeout=TIMEOUT)
async def browser_go_back(calling: Calling) -> ToolResult:
    """Go back to the page before."""
    return await act(calling, actions.go_back)


@tool(body="index", timeout=TIMEOUT)
async def browser_click_element(calling: Calling, index: Index) -> ToolResult:
    """Click an element of the page."""
    return await act(calling, lambda session: actions.click_element(session, index))


@tool(body="text", timeout=TIMEOUT)
async def browser_input_text(
    calling: Calling, index: Index, text: Annotated[str, Field(max_length=50_000, description="What it then holds.")]
) -> ToolResult:
    """Put a text into a field of the page, in place of what it holds."""
    return await act(calling, lambda session: actions.input_text(session, index, text))


@tool(body="keys", timeout=TIMEOUT)
async def browser_send_keys(
    calling: Calling,
    keys: Annotated[str, Field(min_length=1, max_length=100, description="As Enter, Escape, PageDown or Control+A.")],
) -> ToolResult:
    """Press a key, or several at once, where the page has its focus."""
    return await act(calling, lambda session: actions.send_keys(session, keys))


@tool(timeout=TIMEOUT)
async def browser_scroll_down(calling: Calling, amount: Pixels = None) -> ToolResult:
    """Scroll the page down."""
    return await act(calling, lambda session: actions.scroll(session, amount, 1))


@tool(timeout=TIMEOUT)
async def browser_scroll_up(calling: Calling, amount: Pixels = None) -> ToolResult:
    """Scroll the page up."""
    return await act(calling, lambda session: actions.scroll(session, amount, -1))


@tool(body="text", repeatable=True, timeout=TIMEOUT)
async def browser_scroll_to_text(
    calling: Calling, text: Annotated[str, Field(min_length=1, max_length=1_000, description="What to look for.")]
) -> ToolResult:
    """Scroll to a text of the page."""
    return await act(calling, lambda session: actions.scroll_to_text(session, text))


@tool(body="page_id", repeatable=True, timeout=TIMEOUT)
async def browser_switch_tab(calling: Calling, page_id: TabId) -> ToolResult:
    """Make another tab the current one."""
    return await act(calling, lambda session: actions.switch_tab(session, page_id))


@tool(body="page_id", timeout=TIMEOUT)
async def browser_close_tab(calling: Calling, page_id: TabId) -> ToolResult:
    """Close a tab."""
    return await act(calling, lambda session: actions.close_tab(session, page_id))


@tool(body="index", repeatable=True, timeout=TIMEOUT)
async def browser_get_dropdown_options(calling: Calling, index: Index) -> ToolResult:
    """List the options of a dropdown."""
    return await act(calling, lambda session: actions.dropdown_options(session, index))


@tool(body="text", repeatable=True, timeout=TIMEOUT)
async def browser_select_dropdown_option(
    calling: Calling, index: Index, text: Annotated[str, Field(max_length=1_000, description="The option's text.")]
) -> ToolResult:
    """Select an option of a dropdown."""
    return await act(calling, lambda session: actions.select_option(session, index, text))


@tool(timeout=TIMEOUT)
async def browser_click_coordinates(calling: Calling, x: Across, y: Down) -> ToolResult:
    """Click at a point of the screenshot, in pixels from its upper left. Rather click elements by their number."""
    return await act(calling, lambda session: actions.click_coordinates(session, x, y))


@tool(timeout=TIMEOUT)
async def browser_drag_drop(calling: Calling, from_x: Across, from_y: Down, to_x: Across, to_y: Down) -> ToolResult:
    """Drag from one point of the screenshot to another."""
    return await act(calling, lambda session: actions.drag_drop(session, (from_x, from_y), (to_x, to_y)))


@tool(body="seconds", repeatable=True, timeout=TIMEOUT)
async def browser_wait(
    calling: Calling, seconds: Annotated[float, Field(gt=0, le=LONGEST_WAIT_SECONDS, description="How long.")] = 3
) -> ToolResult:
    """Wait for a page that takes its time, and look at it."""
    return await act(calling, lambda session: actions.wait(session, seconds), extra_seconds=seconds)


BROWSER = (
    browser_navigate_to,
    browser_go_back,
    browser_click_element,
    browser_input_text,
    browser_send_keys,
    browser_scroll_down,
    browser_scroll_up,
    browser_scroll_to_text,
    browser_switch_tab,
    browser_close_tab,
    browser_get_dropdown_options,
    browser_select_dropdown_option,
    browser_click_coordinates,
    browser_drag_drop,
    browser_wait,
)

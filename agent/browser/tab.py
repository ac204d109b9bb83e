"""One tab: what is asked of its page, and mouse and keyboard."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from playwright.async_api import BrowserContext, CDPSession, Page
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import TimeoutError as PlaywrightTimeout

from agent.browser import state
from agent.browser.state import Seen
from agent.tools.base import ToolFailed

SCRIPT = Path(__file__).with_name("page.js").read_text()
LIMITS = {"milliseconds": 1_000, "nodes": 20_000, "elements": 200, "words": 80, "text": 6_000}
SCRIPT_WITHIN = 3.0
SCREENSHOT_WITHIN = 5.0
QUALITIES = (60, 30)
MOST_SCREENSHOT = 400_000
SETTLE_SECONDS = 0.2
LOADED_WITHIN = 3.0
GONE = "There is no element {index} any more: the page has changed. Look at its current state."
UNKNOWN = "There is no element {index} in the last state of the browser."


class Hangs(Exception):
    """The page does not answer: it has crashed, or its script never ends."""


class Tab:
    """`known`: the elements that the model was told of, by their numbers."""

    def __init__(self, page: Page, session: CDPSession, target: str, known: dict[str, str]) -> None:
        self.page, self.session, self.target, self.known = page, session, target, known

    @classmethod
    async def of(cls, context: BrowserContext, page: Page, known: dict[str, str]) -> "Tab":
        session = await context.new_cdp_session(page)
        found = await session.send("Target.getTargetInfo")
        return cls(page, session, str(found["targetInfo"]["targetId"]), known)

    async def ask(self, operation: str, *arguments: Any) -> Any:
        """What page.js answers. Raises: Hangs; ToolFailed."""
        expression = f"({SCRIPT})({orjson.dumps(operation).decode()}, {json(arguments)}, {json(LIMITS)})"
        try:
            async with asyncio.timeout(SCRIPT_WITHIN):
                world = await self.world()
                answer = await self.session.send(
                    "Runtime.evaluate", {"contextId": world, "expression": expression, "returnByValue": True}
                )
        except TimeoutError:
            raise Hangs("The page does not answer.") from None
        if told := answer.get("exceptionDetails"):
            said = str((told.get("exception") or {}).get("description") or told.get("text"))
            raise ToolFailed(f"The page cannot be asked that: {said[:300]}")
        return answer["result"].get("value")

    async def world(self) -> int:
        tree = await self.session.send("Page.getFrameTree")
        frame = tree["frameTree"]["frame"]["id"]
        made = await self.session.send("Page.createIsolatedWorld", {"frameId": frame, "worldName": "longrun"})
        return int(made["executionContextId"])

    async def ask_of(self, index: int, operation: str, *arguments: Any) -> dict[str, Any]:
        """The same of one element. Raises: ToolFailed when it is not there."""
        target = self.known.get(str(index))
        if target is None:
            raise ToolFailed(UNKNOWN.format(index=index))
        answer = await self.ask(operation, target, *arguments)
        if answer is None:
            raise ToolFailed(GONE.format(index=index))
        return dict(answer)

    async def look(self) -> Seen:
        """Raises: Hangs."""
        for _ in range(3):
            try:
                return state.read(await self.ask("look"))
            except (PlaywrightError, ToolFailed):  # it went to another page meanwhile
                await asyncio.sleep(SETTLE_SECONDS)
            except (AttributeError, KeyError, TypeError, ValueError):
                break
        raise Hangs("The page cannot be read.")

    async def screenshot(self) -> str:
        """What is seen of the page, as a JPEG in base64; empty when it does not come or is too large."""
        for quality in QUALITIES:
            with suppress(TimeoutError, PlaywrightError):
                async with asyncio.timeout(SCREENSHOT_WITHIN):
                    shot = await self.session.send("Page.captureScreenshot", {"format": "jpeg", "quality": quality})
                if len(data := str(shot["data"])) <= MOST_SCREENSHOT:
                    return data
        return ""

    async def settle(self) -> None:
        """Give the page a moment to react, and, when it goes somewhere, to get there."""
        await asyncio.sleep(SETTLE_SECONDS)
        with suppress(PlaywrightTimeout):
            await self.page.wait_for_load_state("load", timeout=LOADED_WITHIN * 1000)

    async def free(self) -> bool:
        """Break off a script that never ends; whether that helped."""
        with suppress(TimeoutError, PlaywrightError):
            async with asyncio.timeout(SCRIPT_WITHIN):
                await self.session.send("Runtime.terminateExecution")
                await self.session.send("Page.stopLoading")
                return True
        return False


def json(value: object) -> str:
    return orjson.dumps(value).decode()

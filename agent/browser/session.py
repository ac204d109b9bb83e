"""One action in a sandbox's browser: connect, act, look, let go. Nothing is held between two of them.

So it is all one whether the next action comes from this worker or, after a crash, from another.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from playwright.async_api import Browser, BrowserContext, CDPSession, Dialog, Page
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import TimeoutError as PlaywrightTimeout

from agent import thread_manager
from agent.browser import chromium, rescue, state
from agent.browser.downloads import Downloads
from agent.browser.driver import Driver, NoDriver
from agent.browser.state import Known, Seen, State, TabShown
from agent.browser.tab import Hangs, Tab
from agent.browser.wire import MOST_BYTES, Wire, wired
from agent.calls import result_id
from agent.context import Calling, RunContext
from agent.tools.base import ToolFailed, ToolResult
from services import messages
from services.messages import Message
from services.sandbox.protocol import Sandbox, SandboxFailed

FIRST_WITHIN, CONNECT_WITHIN = 3.0, 6.0
LAST_TRY = 2
CLOSE_WITHIN = 0.5
BESIDES_SECONDS = 120.0
"""For all that is not the action: to start anew what hangs, to connect, to look."""
DISCARD_WITHIN = 3.0
ANNOUNCED_WITHIN, POLL_SECONDS = 2.0, 0.05
MOST_TABS = 10
MOST_DIALOGS = 20
NEWEST = 2**63 - 1
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - names, nothing listens
RESTARTED = "The browser did not answer and was started anew: its tabs are gone."
OTHER_TAB = "The tab that was the current one is gone."
CLOSED_TAB = "The page had crashed or hung, so its tab was closed."
NO_NETWORK = (
    "{url} cannot be reached: the sandbox of this project has no network, so the browser opens only what is served in "
    "the sandbox itself, as http://localhost:8000. A person who may change the project can open its network in the "
    "project's settings (sandbox: network), where the operator allows it."
)

Do = Callable[["Session"], Awaitable[str]]


async def act(calling: Calling, do: Do, extra_seconds: float = 0) -> ToolResult:
    """Have `do` act, store how the browser stands then, and say it. Raises: ToolFailed; what the sandbox raises."""
    ctx = calling.ctx
    message_id = uuid5(result_id(calling.answer.message_id, calling.call), "browser_state")
    async with ctx.browsing:
        sandbox = await ctx.sandbox()
        known = Known.of(await newest_state(ctx))
        try:
            stands, words, success = await acted(ctx, sandbox, known, do, extra_seconds)
        except (NoDriver, chromium.NoBrowser) as missing:
            raise ToolFailed(str(missing)) from missing
        except PlaywrightError as error:
            raise ToolFailed(f"The browser broke off: {first_line(error)}.") from error
        except TimeoutError:
            raise ToolFailed("The browser does not answer.") from None
        return await keep(ctx, message_id, stands, words, success=success)


async def acted(
    ctx: RunContext, sandbox: Sandbox, known: Known, do: Do, extra_seconds: float
) -> tuple[State, str, bool]:
    """How the browser stands then, what came of it, and whether it succeeded."""
    within = ctx.settings.agent.browser_timeout.total_seconds()
    driver = ctx.browser_driver
    async with (
        asyncio.timeout(within + extra_seconds + BESIDES_SECONDS),
        driver.used(),
        opened(driver, sandbox, known, within) as session,
    ):
        words, success = await session.attempt(do, extra_seconds)
        stands = await session.state()
    return stands, " ".join([words, *session.notes]), success


async def keep(ctx: RunContext, message_id: UUID, stands: State, words: str, *, success: bool) -> ToolResult:
    stored = await thread_manager.store(ctx, state.message(stands, ctx.run.id, message_id))
    return ToolResult(state.result(stands, words, stored.message_id, success=success), success=success)


async def newest_state(ctx: RunContext) -> Message | None:
    found = await thread_manager.patiently(ctx, lambda conn: messages.temporary(conn, ctx.run.thread_id, NEWEST))
    return next((stored for stored in found if stored.type == "browser_state"), None)


@asynccontextmanager
async def opened(driver: Driver, sandbox: Sandbox, known: Known, within: float) -> AsyncIterator["Session"]:
    """Raises: NoDriver, NoBrowser, ToolFailed; what the sandbox raises."""
    async with AsyncExitStack() as stack:
        browser, wire, notes = await connected(stack, driver, sandbox)
        session = Session(browser, sandbox, known, within, notes)
        try:
            await session.begin()
            yield session
        except PlaywrightError as error:
            if not wire.flooded:
                raise
            raise ToolFailed(f"The browser said more than {MOST_BYTES:,} bytes in one action.") from error
        with suppress(TimeoutError, PlaywrightError):  # what is left is let go of with the wire
            async with asyncio.timeout(CLOSE_WITHIN):
                await browser.close()


async def connected(stack: AsyncExitStack, driver: Driver, sandbox: Sandbox) -> tuple[Browser, Wire, list[str]]:
    """One page that loads or computes without end keeps us out: pages are calmed first, then all is started anew."""
    tried, notes = 0, list[str]()
    while True:
        playwright = await driver.playwright()
        endpoint = await chromium.endpoint(sandbox)
        socket = driver.socket()
        wire = await stack.enter_async_context(wired(sandbox, endpoint.port, socket))
        within = CONNECT_WITHIN if tried else FIRST_WITHIN
        try:
            url = f"ws+unix:{socket}:{endpoint.path}"
            browser = await playwright.chromium.connect_over_cdp(url, timeout=within * 1000)
            return browser, wire, notes
        except PlaywrightError as error:
            if wire.failure and not isinstance(wire.failure, SandboxFailed | OSError):
                raise wire.failure from error
            if tried == LAST_TRY:
                raise ToolFailed("The browser does not answer, though it was started anew.") from error
            if tried:
                await chromium.end(sandbox)
                notes = [RESTARTED]
            elif wire.failure:
                await chromium.end(sandbox)  # its job runs, and nothing answers
            elif isinstance(error, PlaywrightTimeout):
                await rescue.calm(sandbox, endpoint)
            else:
                driver.forget()
        tried += 1


class Session:
    """The browser for one action. `notes`: what happened besides, for the model."""

    def __init__(self, browser: Browser, sandbox: Sandbox, known: Known, within: float, notes: list[str]) -> None:
        self.browser, self.sandbox, self.known, self.within, self.notes = browser, sandbox, known, within, notes
        self.context: BrowserContext = browser.contexts[0]
        self.tabs: list[Tab] = []
        self.dialogs = 0
        self.root: CDPSession
        self.tab: Tab
        self.downloads: Downloads

    async def begin(self) -> None:
        """Find the tab that the model knows as the current one."""
        self.context.on("dialog", self.answer)
        self.root = await self.browser.new_browser_cdp_session()
        self.downloads = await Downloads.allowed(self.root)
        for page in list(self.context.pages):
            await self.take_in(page)
        if not self.tabs:
            await self.take_in(await self.context.new_page())
        order = {target: place for place, target in enumerate(self.known.tabs)}
        self.tabs.sort(key=lambda tab: order.get(tab.target, len(order)))
        self.tab = next((tab for tab in self.tabs if tab.target == self.known.target), self.tabs[-1])
        if self.tab.target == self.known.target:
            self.tab.known = self.known.elements
        elif self.known.target and not self.notes:
            self.notes.append(OTHER_TAB)
        await self.keep_few()

    async def take_in(self, page: Page) -> None:
        with suppress(PlaywrightError):  # it has gone again
            self.tabs.append(await Tab.of(self.context, page, {}))

    async def answer(self, dialog: Dialog) -> None:
        """Nobody sits before it: what asks for words gets none, all else a yes."""
        self.dialogs += 1
        if self.dialogs <= MOST_DIALOGS and dialog.type != "beforeunload":
            did = "dismissed" if dialog.type == "prompt" else "accepted"
            self.notes.append(f"The page showed a dialog ({dialog.type}), which was {did}: {dialog.message[:300]!r}.")
        with suppress(PlaywrightError):
            await (dialog.dismiss() if dialog.type == "prompt" else dialog.accept())

    async def attempt(self, do: Do, extra_seconds: float = 0) -> tuple[str, bool]:
        """What came of it, and whether it succeeded."""
        within = self.within + extra_seconds
        try:
            async with asyncio.timeout(within):
                words = await do(self)
            await self.tab.settle()
            return words, True
        except (Hangs, ToolFailed) as failed:
            return str(failed), False
        except TimeoutError:
            return f"It was not done within {within:g} seconds.", False
        except PlaywrightError as error:
            return f"It could not be done: {first_line(error)}.", False

    async def open(self, url: str) -> None:
        """Raises: ToolFailed."""
        try:
            answer = await self.tab.page.goto(url, wait_until="domcontentloaded", timeout=self.within * 900)
        except PlaywrightTimeout:
            await self.tab.free()
            raise ToolFailed(f"{url} did not answer within {self.within * 0.9:g} seconds.") from None
        except PlaywrightError as error:
            if "Download is starting" in error.message:
                return
            raise ToolFailed(await self.why_unreachable(url, error)) from error
        if answer and answer.status >= 400:
            self.notes.append(f"It was answered with the status {answer.status}.")

    async def why_unreachable(self, url: str, error: PlaywrightError) -> str:
        if "net::ERR_" in error.message and urlsplit(url).hostname not in LOOPBACK and await self.is_closed():
            return NO_NETWORK.format(url=url)
        return f"{url} could not be opened: {first_line(error)}."

    async def is_closed(self) -> bool:
        """Whether the sandbox has no way out."""
        routes = await self.sandbox.exec("tail -n +2 /proc/net/route", timeout=5)
        return not routes.output.strip()

    async def back(self) -> bool:
        return await self.tab.page.go_back(wait_until="domcontentloaded", timeout=self.within * 900) is not None

    async def switch(self, tab_id: int) -> None:
        """Raises: ToolFailed."""
        self.tab = self.numbered(tab_id)
        await self.tab.page.bring_to_front()

    async def close(self, tab_id: int) -> None:
        """Raises: ToolFailed."""
        await self.discard(self.numbered(tab_id))

    def numbered(self, tab_id: int) -> Tab:
        if not 0 <= tab_id < len(self.tabs):
            raise ToolFailed(f"There is no tab {tab_id}; the last one is {len(self.tabs) - 1}.")
        return self.tabs[tab_id]

    async def discard(self, tab: Tab) -> None:
        """Close a tab, whatever its page is up to; there is always one left."""
        if len(self.tabs) == 1:
            await self.take_in(await self.context.new_page())
        self.tabs.remove(tab)
        if tab is self.tab:
            self.tab = self.tabs[-1]
        with suppress(TimeoutError, PlaywrightError):
            async with asyncio.timeout(DISCARD_WITHIN):
                await self.root.send("Target.closeTarget", {"targetId": tab.target})

    async def state(self) -> State:
        """How the browser stands. A page that cannot be looked at loses its tab."""
        await self.meet_new()
        await self.downloads.finish()
        self.notes += self.downloads.told
        seen = await self.look()
        screenshot = await self.tab.screenshot()
        return State(seen, await self.shown(), self.tab.target, screenshot)

    async def meet_new(self) -> None:
        """Tabs that the page has opened: the newest is the current one then."""
        await self.announced()
        met = {tab.page for tab in self.tabs}
        before = len(self.tabs)
        for page in [page for page in self.context.pages if page not in met]:
            await self.take_in(page)
        self.tabs = [tab for tab in self.tabs if not tab.page.is_closed()]
        if not self.tabs:
            await self.take_in(await self.context.new_page())
        if len(self.tabs) > before:
            self.notes.append("A new tab was opened.")
        if len(self.tabs) > before or self.tab not in self.tabs:
            self.tab = self.tabs[-1]
            await self.tab.settle()
        await self.keep_few()

    async def announced(self) -> None:
        """Wait a little for tabs that the browser has and we were not told of yet."""
        deadline = time.monotonic() + ANNOUNCED_WITHIN
        while time.monotonic() < deadline:
            found = await self.root.send("Target.getTargets")
            if sum(each["type"] == "page" for each in found["targetInfos"]) <= len(self.context.pages):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def keep_few(self) -> None:
        while len(self.tabs) > MOST_TABS:
            await self.discard(next(tab for tab in reversed(self.tabs) if tab is not self.tab))

    async def look(self) -> Seen:
        with suppress(Hangs, PlaywrightError):
            return await self.tab.look()
        if await self.tab.free():
            with suppress(Hangs, PlaywrightError):
                return await self.tab.look()
        await self.discard(self.tab)
        self.notes.append(CLOSED_TAB)
        with suppress(Hangs, PlaywrightError):
            return await self.tab.look()
        return Seen()

    async def shown(self) -> list[TabShown]:
        found = await self.root.send("Target.getTargets")
        known = {str(each["targetId"]): each for each in found["targetInfos"]}
        return [
            TabShown(tab.target, str(each.get("url", ""))[: state.URL_CHARS], str(each.get("title", ""))[:300])
            for tab in self.tabs
            for each in [known.get(tab.target, {})]
        ]


def first_line(error: PlaywrightError) -> str:
    """What Playwright says, without its log of what it did."""
    return error.message.strip().splitlines()[0][:300].rstrip(".") if error.message.strip() else "it said nothing"

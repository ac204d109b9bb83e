"""The parts of the client and of the console, each by itself, in Chromium: no API, a server that is made of answers."""

import mimetypes
from pathlib import Path

from playwright.async_api import BrowserContext, Route, expect

from api import pages

HERE = Path(__file__).parent
ORIGIN = "https://longrun.test"
"""By name only, and secure: else there would be no locks."""


async def serve(route: Route) -> None:
    """The client's own files, and ours."""
    name = route.request.url.removeprefix(f"{ORIGIN}/")
    path = pages.FOLDER / name.removeprefix("console/") if name.startswith("console/") else HERE / name
    await route.fulfill(path=path, content_type="text/javascript")


async def test_the_parts_of_client_and_console_do_what_they_say(context: BrowserContext) -> None:
    page = await context.new_page()
    await page.route(f"{ORIGIN}/**/*.js", serve)
    await page.route(f"{ORIGIN}/*unit.js", serve)
    await page.goto(f"{ORIGIN}/blank")
    for name in ("unit", "console_unit"):
        told = await page.evaluate(f"import('/{name}.js').then(({{run}}) => run())")
        assert not told["failed"], "\n".join(told["failed"])
        assert told["count"] > 30


async def test_a_link_with_a_token_signs_nobody_in_by_itself_but_on_ones_own_machine(context: BrowserContext) -> None:
    """It may be anybody's link: whoever follows it would write into the account of its author."""
    page = await context.new_page()
    asked: list[str] = []

    async def answer(route: Route) -> None:
        name = route.request.url.removeprefix(f"{ORIGIN}/").partition("#")[0]
        if name.startswith("api/"):
            asked.append(name)
            await route.fulfill(status=401, json={"detail": "no"})
            return
        path = pages.FOLDER / (name.removeprefix("console/") or pages.INDEX)
        await route.fulfill(path=path, content_type=mimetypes.guess_type(path)[0])

    await page.route(f"{ORIGIN}/**", answer)
    await page.goto(f"{ORIGIN}/#token=a.b.c")
    await expect(page.locator("#sign-in textarea")).to_have_value("a.b.c")
    assert (page.url, asked, await page.evaluate("sessionStorage.length")) == (f"{ORIGIN}/", [], 0)
    await page.click("text=Sign in >> nth=-1")
    await expect(page.locator("#sign-in [role=alert]")).to_contain_text("not accepted")
    assert asked

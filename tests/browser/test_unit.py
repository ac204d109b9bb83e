"""The parts of the client and of the console, each by itself, in Chromium: no API, a server that is made of answers."""

from pathlib import Path

from playwright.async_api import BrowserContext, Route

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

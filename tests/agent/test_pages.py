"""Pages from servers on loopback, read by the real script."""

import asyncio
import gzip
import threading
from collections.abc import Awaitable

import pytest
import uvloop

from agent import pages
from agent.pages import Page, PageUnreadable
from services.settings import OutgoingSettings, Settings
from tests import sites
from tests.sites import redirect, site
from tests.waiting import eventually

SETTINGS = Settings(outgoing=OutgoingSettings(allow_private=True))
IMPATIENT = Settings(outgoing=OutgoingSettings(allow_private=True, read_timeout="500ms"))
SENTENCES = "".join(f"<p>Sentence {n} of the story, which is long enough to be <b>read</b>.</p>" for n in range(20))
ARTICLE = f"""<html><head><title>The story</title><meta name="date" content="2024-05-06"></head>
<body><nav><a href="/">Start</a> <a href="/buy">Buy now</a></nav><article><h1>The story</h1>{SENTENCES}
<p>See <a href="more.html">what came next</a> if you like.</p></article><footer>All rights</footer></body></html>"""


async def why_unreadable(reading: Awaitable[Page]) -> str:
    with pytest.raises(PageUnreadable) as refused:
        await reading
    return str(refused.value)


async def test_an_article_comes_as_markdown_without_what_is_around_it() -> None:
    async with site({"/": redirect("/a/story"), "/a/story": sites.Page(ARTICLE.encode())}) as server:
        page = await pages.read(SETTINGS, server.url())
        link = f"[what came next]({server.url('/a/more.html')})"
        assert (page.url, page.title, page.date) == (server.url("/a/story"), "The story", "2024-05-06")
    assert page.text.startswith("# The story\n\nSentence 0 of the story")
    assert "Sentence 19 of the story, which is long enough to be **read**." in page.text
    assert link in page.text
    assert "Buy now" not in page.text
    assert "All rights" not in page.text


async def test_a_page_without_an_article_gives_all_of_its_text() -> None:
    async with site({"/": sites.Page(b"<html><body><div>Sold out</div></body></html>")}) as server:
        assert "Sold out" in (await pages.read(SETTINGS, server.url())).text


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("<p>Grüße</p>".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        ("<meta charset=windows-1252><p>Grüße</p>".encode("cp1252"), "text/html"),
        ("<p>Grüße</p>".encode(), "text/html; charset=no-such-charset"),
        ("<p>Grüße</p>".encode(), "text/html; charset=base64"),
        ("Grüße".encode("utf-16"), "text/plain; charset=utf-16"),
        ("Grüße".encode() + b"a-9" * 500_000, "text/plain; charset=punycode"),
        ("Grüße".encode("shift_jis", "replace") + "Grüße".encode(), "text/plain; charset="),
        ("<p>Grüße</p>".encode(), ""),
        ("Grüße".encode(), "text/markdown"),
        ('{"said": "Grüße"}'.encode(), "application/json"),
        ("<feed>Grüße</feed>".encode(), "application/atom+xml"),
    ],
)
async def test_text_of_every_kind_and_charset_is_read(body: bytes, content_type: str) -> None:
    async with site({"/": sites.Page(body, content_type)}) as server:
        assert "Grüße" in (await pages.read(SETTINGS, server.url())).text


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (sites.Page(b"%PDF-1.7", "application/pdf", endless=True), "It is a PDF, and only web pages"),
        (sites.Page(b"\x89PNG", "image/png", endless=True), "It is image/png, and only web pages"),
        (sites.Page(b"gone", status=410), "It answered with status 410"),
        (sites.Page(b"x" * 10_000, endless=True), "It is larger than 3,000,000 bytes."),
        (
            sites.Page(gzip.compress(bytes(50_000_000)), headers={"Content-Encoding": "gzip"}),
            "It is larger than 3,000,000 bytes.",
        ),
        (sites.Page(b"no gzip", headers={"Content-Encoding": "gzip"}), "It could not be fetched"),
        (sites.Page(hangs=True), "It did not answer in time."),
        (redirect("/"), "It redirects too often."),
        (redirect("http://169.254.169.254/latest/meta-data"), "169.254.169.254 is not on the public internet"),
        (redirect("http://[::1"), "It could not be fetched"),
    ],
)
async def test_what_cannot_be_read_is_said_in_a_sentence(page: sites.Page, words: str) -> None:
    async with site({"/": page}) as server:
        settings = IMPATIENT if page.hangs else SETTINGS
        assert (await why_unreadable(pages.read(settings, server.url()))).startswith(words)


async def test_a_body_that_drips_ends_with_the_patience_for_the_whole_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 0.3)
    async with site({"/": sites.Page(b"x" * 1000, drip=0.05)}) as server:
        assert await why_unreadable(pages.read(SETTINGS, server.url())) == "It did not answer in time."


async def test_a_closed_port_a_private_page_and_nonsense_are_said() -> None:
    async with site({}) as server:
        closed = server.url()
        assert await why_unreadable(pages.read(Settings(), closed)) == (
            "127.0.0.1 is not on the public internet; it is not opened from here."
        )
    assert "could not be reached" in await why_unreadable(pages.read(SETTINGS, closed))
    assert "begin with http" in await why_unreadable(pages.read(SETTINGS, "javascript:alert(1)"))


async def test_a_page_that_takes_too_long_to_read_out_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "EXTRACTION_SECONDS", 1.5)
    links = b"<html><body>" + b"<a href='x'>y</a>" * 150_000
    async with site({"/": sites.Page(links)}) as server:
        assert await why_unreadable(pages.read(SETTINGS, server.url())) == "Its text could not be read out in time."


async def test_the_loop_goes_on_while_a_page_is_read_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The script ends when the loop has seen it begin, and says so."""
    folder = tmp_path_factory.mktemp("script")
    script, begun, go = folder / "wait.py", folder / "begun", folder / "go"
    script.write_text(
        "import json, pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists():\n"
        "    time.sleep(0.01)\n"
        "print(json.dumps({'text': 'gone on'}))\n"
    )
    monkeypatch.setattr(pages, "SCRIPT", script)
    async with site({"/": sites.Page(b"<p>x</p>")}) as server:
        reading = asyncio.create_task(pages.read(SETTINGS, server.url()))
        await eventually(begun.exists)
        go.touch()
        assert (await reading).text == "gone on"


async def test_the_script_knows_nothing_of_our_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = tmp_path_factory.mktemp("script") / "tell.py"
    told.write_text("import json, os; print(json.dumps({'text': ' '.join(os.environ)}))")
    monkeypatch.setattr(pages, "SCRIPT", told)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    async with site({"/": sites.Page(b"<p>x</p>")}) as server:
        text = (await pages.read(SETTINGS, server.url())).text
    assert "OPENAI_API_KEY" not in text
    assert "DATABASE_URL" not in text


async def test_a_page_is_read_on_the_loop_of_a_worker() -> None:
    """Workers have uvloop in a thread that is not the main one."""
    found: list[Page] = []
    async with site({"/": sites.Page(ARTICLE.encode())}) as server:
        thread = threading.Thread(target=lambda: found.append(uvloop.run(pages.read(SETTINGS, server.url()))))
        thread.start()
        await asyncio.to_thread(thread.join)
    assert found[0].title == "The story"

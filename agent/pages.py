"""Web pages: fetched through the guard, bounded, and turned into text."""

import asyncio
import codecs
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import orjson

import agent
from services.log import logger
from services.outgoing import BodyTooLarge, ForbiddenUrl, open_guarded_client, read_bounded
from services.settings import Settings

MAX_PAGE_BYTES = 3_000_000
PATIENCE = 30.0
"""Seconds for a page to arrive whole, redirects and all."""
EXTRACTION_SECONDS = 15.0
SCRIPT = Path(agent.__file__).with_name("page_text.py")
HTML = frozenset({"text/html", "application/xhtml+xml"})
TEXT = frozenset({"application/json", "application/xml", "application/javascript", "application/x-ndjson"})
TEXT_SUFFIXES = ("+json", "+xml")
CHARSETS = (
    "utf-8",
    "utf-16",
    "utf-32",
    "ascii",
    "iso8859",
    "cp",
    "koi8",
    "gb",
    "big5",
    "shift_jis",
    "euc_",
    "iso2022_",
)
"""Beginnings of Python's names for them; of its other codecs punycode takes the square of the length."""
HEADERS: Mapping[str, str] = {
    "User-Agent": "Mozilla/5.0 (compatible; longrun)",
    "Accept": "text/html,application/xhtml+xml,text/plain;q=0.9,text/markdown;q=0.9,application/json;q=0.8,*/*;q=0.1",
    "Accept-Language": "en,*;q=0.5",
}


class PageUnreadable(Exception):
    """A page that cannot be read; the text is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Page:
    """`url` is where the redirects led; `title` and `date` are empty where the page tells none."""

    url: str
    text: str
    title: str = ""
    date: str = ""


async def read(settings: Settings, url: str) -> Page:
    """The text of a page on the public internet; HTML comes as Markdown, its menus and advertisements left out.

    Raises: PageUnreadable.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            response, body = await fetch(settings, url)
    except ForbiddenUrl as error:
        raise PageUnreadable(str(error)) from error
    except (TimeoutError, httpx2.TimeoutException) as error:
        raise PageUnreadable("It did not answer in time.") from error
    except BodyTooLarge as error:
        raise PageUnreadable(str(error)) from error
    except httpx2.TooManyRedirects as error:
        raise PageUnreadable("It redirects too often.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise PageUnreadable(f"It could not be fetched: {error or type(error).__name__}") from error
    return await text_of(response, body)


async def fetch(settings: Settings, url: str) -> tuple[httpx2.Response, bytes]:
    """Raises: PageUnreadable for an answer that is no text, before its body is read."""
    opened = open_guarded_client(settings, headers=HEADERS, follow_redirects=True)
    async with opened as client, client.stream("GET", url) as response:
        if response.status_code >= 400:
            raise PageUnreadable(f"It answered with status {response.status_code} {response.reason_phrase}".strip())
        refuse_unreadable(media_type(response))
        return response, await read_bounded(response, MAX_PAGE_BYTES)


def media_type(response: httpx2.Response) -> str:
    told: str = response.headers.get("content-type", "")
    return told.partition(";")[0].strip().lower() or "text/html"


def refuse_unreadable(kind: str) -> None:
    """Raises: PageUnreadable."""
    if kind == "application/pdf":
        raise PageUnreadable("It is a PDF, and only web pages and text can be read. Look for the same as a web page.")
    if kind not in HTML | TEXT and not kind.startswith("text/") and not kind.endswith(TEXT_SUFFIXES):
        raise PageUnreadable(f"It is {kind[:100]}, and only web pages and text can be read.")


async def text_of(response: httpx2.Response, body: bytes) -> Page:
    url, charset = str(response.url), known(response.charset_encoding)
    if media_type(response) not in HTML:
        return Page(url, body.decode(charset or "utf-8", "replace"))
    extracting = partial(extract, body, url, charset)
    return await asyncio.get_running_loop().run_in_executor(EXTRACTIONS, extracting)


def known(charset: str | None) -> str | None:
    """A charset that a server names, if pages are written in it: Python has codecs that are no charsets."""
    try:
        name = codecs.lookup(charset or "").name
    except (LookupError, ValueError):
        return None
    return name if name.startswith(CHARSETS) else None


EXTRACTIONS = ThreadPoolExecutor(2, thread_name_prefix="page-text")
"""As many pages at once as one worker process reads."""


def extract(body: bytes, url: str, charset: str | None) -> Page:
    """Have a script read HTML, in a process without our environment.

    Raises: PageUnreadable.
    """
    command = [sys.executable, "-I", str(SCRIPT), url, *([charset] if charset else [])]
    try:
        done = subprocess.run(  # noqa: S603 - our own script; the URL is one argument of it
            command, input=body, capture_output=True, timeout=EXTRACTION_SECONDS, env={}
        )
    except subprocess.TimeoutExpired as error:
        raise PageUnreadable("Its text could not be read out in time.") from error
    if done.returncode:
        logger.warning(
            "page.not_extracted", url=url, status=done.returncode, error=done.stderr[-1000:].decode(errors="replace")
        )
        raise PageUnreadable("Its text could not be read out.")
    return Page(url, **orjson.loads(done.stdout))

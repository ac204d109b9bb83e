"""The console and the client as files."""

import gzip
import re
from pathlib import Path

import pytest

from api import pages
from tests.api.conftest import Person

FILES = [path for path in pages.FOLDER.rglob("*") if path.is_file()]
MAX_SCRIPT_BYTES = 150 * 1024


@pytest.mark.parametrize("path", ["/", "/console/longrun.js", "/console/longrun/stream.js", "/console/longrun.d.ts"])
async def test_pages_are_files_that_run_nothing_of_others(ann: Person, path: str) -> None:
    answer = await ann.get(f"http://test{path}", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.content == (pages.FOLDER / (path.removeprefix("/console").strip("/") or pages.INDEX)).read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert not any("unsafe" in sources or "http" in sources for sources in policy.values())
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_browser_keeps_pages_and_asks_whether_they_are_the_same(ann: Person) -> None:
    first = await ann.get("http://test/console/longrun.js", headers={"Accept-Encoding": "identity"})
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers["Content-Type"].startswith("text/javascript")
    again = await ann.get("http://test/console/longrun.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    async with ann.stream("GET", "http://test/console/longrun.js", headers={"Accept-Encoding": "gzip"}) as zipped:
        raw = b"".join([part async for part in zipped.aiter_raw()])
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(raw) == first.content


@pytest.mark.parametrize(
    "name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "longrun", "", "/etc/passwd", "nothing.js"]
)
async def test_nothing_else_of_the_disk_is_served(ann: Person, name: str) -> None:
    assert (await ann.get(f"http://test/console/{name}")).status_code == 404


def test_the_pages_ask_nobody_else_and_are_small() -> None:
    scripts = [path for path in FILES if path.suffix == ".js"]
    assert sum(path.stat().st_size for path in scripts) <= MAX_SCRIPT_BYTES
    for path in FILES:
        assert not outside(path), f"{path} leads elsewhere: {outside(path)}"


def outside(path: Path) -> list[str]:
    """What a page would load from elsewhere; comments and XML namespaces may name what they like."""
    return re.findall(r"""(?:src=|import\(|from |url\(|<link[^>]*href=)["']?https?://[^\s"')]+""", path.read_text())

"""What serves in a real sandbox, seen through the preview's own listener."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import uvicorn
from httpx2 import AsyncClient, RemoteProtocolError

from api import preview
from api.preview import create_app
from services import previews
from services.postgres import Pool
from services.previews import Preview
from services.sandbox.protocol import Sandbox, SandboxProvider
from services.settings import PreviewSettings, Settings
from tests.services.test_threads import make_thread
from tests.waiting import PATIENT, eventually

PORT = 8123
SERVER = """
import http.server, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/slow":
            return self.drip()
        if self.path == "/cut":
            return self.cut()
        headers = "".join(f"{name.lower()}: {value}\\n" for name, value in self.headers.items())
        self.say(f"{self.command} {self.path}\\n{headers}".encode())

    def do_POST(self):
        self.say(self.rfile.read(int(self.headers["Content-Length"])), 201)

    def do_HEAD(self):
        self.send_response(204)
        self.end_headers()

    def say(self, body, status=200):
        self.send_response(status, "Fine")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("X-Own", "yes")
        self.end_headers()
        self.wfile.write(body)

    def drip(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"5\\r\\ndrip\\n\\r\\n")
            time.sleep(0.02)

    def cut(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"only this")
        self.close_connection = True

http.server.ThreadingHTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
"""


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    sandbox = settings.sandbox.model_copy(update={"folder": str(tmp_path / "sandboxes")})
    shown = PreviewSettings(url="http://{label}.localhost/")
    return settings.model_copy(update={"sandbox": sandbox, "previews": shown})


@pytest.fixture
async def project_id(pool: Pool) -> UUID:
    async with pool.acquire() as conn:
        return (await make_thread(conn)).project_id


@pytest.fixture
async def sandbox(sandboxes: SandboxProvider, project_id: UUID) -> Sandbox:
    """One with a web server on PORT."""
    opened = await sandboxes.open(project_id)
    await opened.write_file("/workspace/server.py", SERVER.encode())
    await opened.start_job("web", "python3 -u server.py")
    await opened.exec(f"until (: < /dev/tcp/127.0.0.1/{PORT}) 2>/dev/null; do sleep 0.02; done", timeout=60)
    return opened


@pytest.fixture
async def listener(settings: Settings) -> AsyncIterator[str]:
    """The address of the preview's real server."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([bound]))
        await eventually(lambda: server.started)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest.fixture
async def browser(listener: str, settings: Settings, project_id: UUID) -> AsyncIterator[AsyncClient]:
    host = f"{previews.label(settings, Preview(project_id, PORT))}.localhost"
    async with AsyncClient(base_url=listener, headers={"Host": host}, trust_env=False, timeout=60) as client:
        yield client


async def test_requests_and_answers_pass_as_they_are(browser: AsyncClient, sandbox: Sandbox) -> None:
    answer = await browser.get("/a%2Fb/../c?x=%20y", headers={"X-Mine": "1", "Cookie": "c=3"})
    assert answer.status_code == 200
    assert answer.headers["x-own"] == "yes"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    first, *headers = answer.text.splitlines()
    assert first.startswith("GET /")
    assert first.endswith("?x=%20y")
    assert {"x-mine: 1", "cookie: c=3", f"host: localhost:{PORT}", "connection: close"} <= set(headers)
    assert f"x-forwarded-host: {browser.headers['Host']}" in headers
    body = bytes(range(256)) * 5000
    posted = await browser.post("/", content=body)
    assert (posted.status_code, posted.content) == (201, body)
    assert (await browser.head("/")).status_code == 204


async def test_an_answer_flows_as_it_comes_and_ends_with_its_reader(browser: AsyncClient, sandbox: Sandbox) -> None:
    async with browser.stream("GET", "/slow") as answer:
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(3)] == ["drip"] * 3
        assert await connections(sandbox) == 1
    async with asyncio.timeout(PATIENT):
        while await connections(sandbox):
            pass


async def connections(sandbox: Sandbox) -> int:
    """How many the server has, by the kernel's table (01 is ESTABLISHED)."""
    found = await sandbox.exec(f"grep -c ' 0100007F:{PORT:04X} [0-9A-F:]* 01 ' /proc/net/tcp")
    return int(found.output)


async def test_an_answer_that_is_cut_is_not_passed_off_as_whole(browser: AsyncClient, sandbox: Sandbox) -> None:
    with pytest.raises(RemoteProtocolError):
        await browser.get("/cut")


async def test_nothing_is_shown_to_whoever_was_not_given_the_address(
    browser: AsyncClient, sandbox: Sandbox, settings: Settings, project_id: UUID
) -> None:
    known = previews.label(settings, Preview(project_id, PORT))
    port, project, signed = known.split("-")
    forged = f"{known[:-1]}{'y' if known.endswith('x') else 'x'}"
    for host in ("localhost", f"{port}-{project}.localhost", f"8124-{project}-{signed}.localhost", forged):
        answer = await browser.get("/", headers={"Host": host})
        assert (answer.status_code, answer.text) == (404, preview.NOT_THERE)


async def test_a_project_that_is_gone_is_not_there_and_no_sandbox_is_made_for_it(
    browser: AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    host = f"{previews.label(settings, Preview(uuid4(), PORT))}.localhost"
    assert (await browser.get("/", headers={"Host": host})).status_code == 404
    assert not (tmp_path / "sandboxes").exists()


async def test_a_port_on_which_nothing_listens_is_a_bad_gateway(browser: AsyncClient) -> None:
    answer = await browser.get("/")
    assert (answer.status_code, answer.text) == (502, preview.NO_ANSWER)


async def test_a_server_that_never_answers_is_given_up(
    browser: AsyncClient, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "PATIENCE_SECONDS", 0.3)
    await sandbox.exec("pkill -STOP -f server.py")
    assert (await browser.get("/")).status_code == 502

"""What runs on a port of a sandbox, shown on an origin of its own: `uvicorn --factory api.preview:create_app`.

It forwards HTTP. Its listener is never the API's, so what an agent serves can reach nothing of ours in a browser.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import httpcore2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from api.connections import guard
from services import log, previews, projects, reporting
from services.log import logger
from services.postgres import Pool, Unreachable, open_pool
from services.previews import Preview
from services.projects import wants_network
from services.sandbox.protocol import Pipe, SandboxFailed, SandboxProvider, SandboxUnavailable
from services.sandbox.providers import make_provider
from services.settings import Settings, load

PATIENCE_SECONDS = 120.0
"""How long what serves in the sandbox may be silent."""
OF_ONE_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"upgrade")
)
"""Headers that are not passed on."""
NOT_THERE = "There is no preview at this address."
NO_ANSWER = "Nothing answers here at the moment."

Headers = Iterable[tuple[bytes, bytes]]
Failures = (SandboxFailed, SandboxUnavailable, httpcore2.ProtocolError, httpcore2.TimeoutException)


def create_app(settings: Settings | None = None) -> Starlette:
    """The previews of one process; its resources open with the lifespan."""
    settings = settings or load()
    log.configure(settings)
    reporting.start(settings)
    forwarding = Forwarding(settings)
    app = Previewer(routes=[Mount("/", forwarding)], lifespan=lambda _: forwarding.opened())
    app.state.settings = settings
    return app


class Previewer(Starlette):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard(scope, receive, self.state.settings.api)
        await super().__call__(scope, receive, send)


class Forwarding:
    """Each request goes to the port of the sandbox that its host name stands for."""

    pool: Pool
    sandboxes: SandboxProvider

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self.pool = await open_pool(self.settings.postgres, min_size=0)
        self.sandboxes = make_provider(self.settings.sandbox, partial(wants_network, self.pool))
        yield
        await self.pool.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.answer(Request(scope, receive), send)

    async def answer(self, request: Request, send: Send) -> None:
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            preview = await self.asked_for(request)
            if preview:
                await self.forward(request, preview, watched_send)
            else:
                await PlainTextResponse(NOT_THERE, 404)(request.scope, request.receive, send)
        except (*Failures, *Unreachable) as error:
            logger.info("preview.not_answered", error=repr(error), started=started)
            if started:
                raise
            await PlainTextResponse(NO_ANSWER, 502)(request.scope, request.receive, send)

    async def asked_for(self, request: Request) -> Preview | None:
        """What the host name was given out for, while there is the project."""
        preview = previews.read(self.settings, request.headers.get("host", ""))
        return preview if preview and await projects.exists(self.pool, preview.project_id) else None

    async def forward(self, request: Request, preview: Preview, send: Send) -> None:
        sandbox = await self.sandboxes.open(preview.project_id)
        async with await sandbox.connect(preview.port) as pipe:
            asked = passed_on(request, preview.port)
            connection = httpcore2.AsyncHTTP11Connection(asked.url.origin, Stream(pipe))
            answer = await connection.handle_async_request(asked)
            response = StreamingResponse(answer.aiter_stream(), answer.status)
            response.raw_headers = kept(answer.headers)
            await response(request.scope, request.receive, send)


def passed_on(request: Request, port: int) -> httpcore2.Request:
    """The request as what serves there sees it: asked of its own machine, on a connection of its own."""
    path, query = request.scope["raw_path"], request.scope["query_string"]
    headers = [(name, value) for name, value in kept(request.headers.raw) if name != b"host"]
    forwarded = (b"x-forwarded-host", request.headers.get("host", "").encode("latin-1"))
    own = [(b"host", b"localhost:%d" % port), forwarded, (b"connection", b"close")]
    return httpcore2.Request(
        request.method,
        httpcore2.URL(scheme=b"http", host=b"localhost", port=port, target=path + (b"?" + query if query else b"")),
        headers=[*own, *headers],
        content=request.stream(),
        extensions={"timeout": {"read": PATIENCE_SECONDS, "write": PATIENCE_SECONDS}},
    )


def kept(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers if name.lower() not in OF_ONE_CONNECTION]


class Stream(httpcore2.AsyncNetworkStream):
    """A connection into a sandbox, as httpcore knows them."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.rest = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                data = self.rest or await self.pipe.read()
        except TimeoutError as error:
            raise httpcore2.ReadTimeout from error
        self.rest = data[max_bytes:]
        return data[:max_bytes]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self.pipe.write(buffer)
        except TimeoutError as error:
            raise httpcore2.WriteTimeout from error

    async def aclose(self) -> None:
        """Whoever opened the connection closes it."""

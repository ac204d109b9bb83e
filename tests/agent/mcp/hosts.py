"""Servers that are reached over HTTP on loopback: one of the SDK's own, and one that misbehaves as it is told."""

import asyncio
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MEGABYTE = 1024 * 1024
PLAIN = {"type": "object", "properties": {"text": {"type": "string"}}}


class Host:
    """An application on a port of its own, in a thread; `with Host(app) as host: host.url`."""

    def __init__(self, app: Any, path: str = "/mcp", port: int = 0) -> None:
        config = uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=1)
        self.server, self.path = uvicorn.Server(config), path
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)

    @property
    def port(self) -> int:
        port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


def calculator() -> MCPServer:
    """A real server; `whoami` tells which Authorization it was sent."""
    server = MCPServer("calculator", instructions="Add carefully.", log_level="CRITICAL")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def whoami(context: Context[Any]) -> str:
        """Tell who calls."""
        return str((context.headers or {}).get("authorization"))

    return server


class Rude:
    """Streamable HTTP by hand: `how` says at which method it does what."""

    def __init__(self, **how: Callable[[], Response]) -> None:
        self.how = {name.replace("_", "/"): act for name, act in how.items()}
        self.app = Starlette(routes=[Route("/mcp", self.answer, methods=["GET", "POST", "DELETE"])])

    async def answer(self, request: Request) -> Response:
        if request.method != "POST":
            return Response(status_code=405)
        asked = await request.json()
        if act := self.how.get(asked["method"]):
            return act()
        results: dict[str, Any] = {
            "initialize": {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "rude", "version": "1"},
            },
            "tools/list": {"tools": [{"name": "echo", "inputSchema": PLAIN}]},
            "tools/call": {"content": [{"type": "text", "text": "echoed"}]},
        }
        if "id" not in asked:
            return Response(status_code=202)
        if asked["method"] not in results:
            error = {"code": -32601, "message": "Method not found"}
            return JSONResponse({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": results[asked["method"]]}
        return JSONResponse(answer, headers={"mcp-session-id": "one"})


def refuses(status: int) -> Callable[[], Response]:
    return lambda: Response("secret words of the server", status)


def floods(content_type: str) -> Callable[[], Response]:
    """50 MB: as one JSON text, or as one event of a stream."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"data: " if content_type == "text/event-stream" else b'{"jsonrpc": "2.0", "id": "'
        for _ in range(50):
            yield b"x" * MEGABYTE

    return lambda: StreamingResponse(pieces(), media_type=content_type)


def babbles() -> Response:
    """Very many small events that are no answer."""
    event = b"data: " + json.dumps({"jsonrpc": "2.0", "method": "notifications/x", "params": {}}).encode() + b"\n\n"

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(700):
            yield event * 1000

    return StreamingResponse(pieces(), media_type="text/event-stream")


def bombs() -> Response:
    """50 MB that travel as 50 kB."""
    packed = gzip.compress(b"x" * 50 * MEGABYTE)
    return Response(packed, media_type="application/json", headers={"Content-Encoding": "gzip"})


def hangs() -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"jsonrpc'
        for _ in range(1200):
            await asyncio.sleep(0.05)
            yield b" "

    return StreamingResponse(pieces(), media_type="application/json")


def hanging(method: str, reached: threading.Event) -> Starlette:
    """Streamable HTTP with sessions that never answers to one method, once it is `reached`."""
    rude = Rude()

    async def answer(request: Request) -> Response:
        asked = (await request.json())["method"] if request.method == "POST" else request.method
        if asked == method:
            reached.set()
            await asyncio.sleep(60)
        answered = await rude.answer(request)
        answered.headers["mcp-session-id"] = "s"
        return answered

    return Starlette(routes=[Route("/mcp", answer, methods=["GET", "POST", "DELETE"])])


def at(url: str, kind: str = "http", **more: Any) -> dict[str, Any]:
    """The custom server at a URL."""
    config = {"url": url, "headers": more.pop("headers", {})}
    return {"name": "web", "type": kind, "config": config, **more}

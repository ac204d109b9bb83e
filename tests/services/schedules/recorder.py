"""A QStash of the tests' own: the part of its API that schedules need, with what was asked of it."""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.waiting import eventually

TOKEN = "token-of-the-tests"
CURRENT, NEXT = "sig_current_of_the_tests_0123456789ab", "sig_next_of_the_tests_0123456789abcd"


class Recorder:
    """`schedules` by id; `calls` as `VERB id`; while it is `away` it answers 503, and nothing before it `answers`."""

    def __init__(self) -> None:
        self.schedules: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.away, self.asked = False, 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.url = ""

    async def take(self, request: Request) -> Response:
        self.asked += 1
        await self.answers.wait()
        verb, path = request.method, request.path_params["path"]
        schedule_id = request.headers.get("Upstash-Schedule-Id") or path.split("/")[0]
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            return Response(status_code=401)
        if self.away:
            return Response("away", 503)
        self.calls.append(f"{verb} {path.split('/')[-1] if verb == 'PATCH' else ''}".strip())
        if verb == "POST":
            known = self.schedules.setdefault(schedule_id, {"paused": False})
            known |= {"destination": path, "cron": request.headers["Upstash-Cron"], "body": await request.body()}
            return JSONResponse({"scheduleId": schedule_id})
        if schedule_id not in self.schedules:
            return Response("no such schedule", 404)
        if verb == "DELETE":
            del self.schedules[schedule_id]
        else:
            self.schedules[schedule_id]["paused"] = path.endswith("/pause")
        return Response()


@asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    app = Starlette(routes=[Route("/v2/schedules/{path:path}", recorder.take, methods=["POST", "PATCH", "DELETE"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    recorder.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield recorder
    finally:
        recorder.answers.set()
        server.should_exit = True
        await task


def signature(url: str, body: bytes, key: str = CURRENT, **claims: Any) -> str:
    """As QStash signs a delivery."""
    now = int(time.time())
    hashed = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()
    told = {
        "iss": "Upstash",
        "sub": url,
        "exp": now + 300,
        "nbf": now,
        "iat": now,
        "jti": "1",
        "body": hashed,
        **claims,
    }
    return jwt.encode({name: value for name, value in told.items() if value is not None}, key, algorithm="HS256")

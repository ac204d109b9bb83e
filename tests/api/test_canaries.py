"""An API process as it should not be run, with an access log and at level debug: it writes no credential."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from httpx2 import AsyncClient, TransportError
from redis.asyncio import Redis

from services.embedded import ports
from services.settings import Settings
from services.tokens import sign_access_token
from tests.acceptance.client import until

SECRET = "a-secret-of-canaries-of-32-bytes-or-more"
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "api.log"


@pytest.fixture
def url(settings: Settings, redis: Redis, log: Path) -> Iterator[str]:
    """Where a process listens that writes all it can into `log`."""
    with serving(settings, log, LOG_LEVEL="debug", LOG_FORMAT="json") as url:
        yield url


@contextmanager
def serving(settings: Settings, log: Path, **names: str) -> Iterator[str]:
    """A process of the API with routes that fail, on the stores of the test; the address where it listens."""
    port = ports.pick(set())
    stores = {
        "DATABASE_URL": settings.postgres.url.get_secret_value(),
        "REDIS_URL": settings.redis.url.get_secret_value(),
        "BROKER": "redis",
        "BROKER_REDIS_URL": settings.broker.redis_url.get_secret_value(),
        "JWT_SECRET": SECRET,
    }
    command = ["uvicorn", "--factory", "tests.api.failing:create_app", "--port", str(port), "--http", "httptools"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=CHECKOUT,
            env={**os.environ, **stores, **names},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
async def http(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(base_url=f"{url}/api", trust_env=False, timeout=30) as http:
        await until(lambda: answers(http), within=60)
        yield http


async def answers(http: AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except TransportError:
        return False


def text_of(log: Path) -> str:
    return log.read_text()


def token(secret: str, user_id: UUID) -> str:
    return sign_access_token(secret, user_id, lifetime=timedelta(hours=1))


async def test_no_credential_is_written_whatever_comes_and_whatever_fails(http: AsyncClient, log: Path) -> None:
    good, forged = token(SECRET, uuid4()), token("another-secret-of-32-bytes-or-more-now", uuid4())
    signed_in = {"Authorization": f"Bearer {good}"}
    thread = (await http.post("/threads", data={"name": "x"}, headers=signed_in)).raise_for_status().json()
    start = f"/thread/{thread['thread_id']}/agent/start"
    run = (await http.post(start, json={"model_name": "demo/echo", "delay_seconds": 3600}, headers=signed_in)).json()
    stream = f"/agent-run/{run['agent_run_id']}/stream"
    ticket = (await http.post(f"{stream}-token", headers=signed_in)).raise_for_status().json()["token"]
    key = (await http.post("/api-keys", json={"title": "ci"}, headers=signed_in)).raise_for_status().json()
    key_said = f"{key['public_key']}:{key['secret_key']}"
    (await http.post(f"/agent-run/{run['agent_run_id']}/stop", headers=signed_in)).raise_for_status()

    asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
    for said in (good, forged, ticket, "hush-hush-hush", key["secret_key"]):
        for path in (stream, "/threads", "/fail", "/fail-late", f"/{said}"):
            asked.append((path, {}, {"token": said}))
            asked.append((path, {"Authorization": f"Bearer {said}", "Cookie": f"token={said}"}, {}))
        asked.append(("/agents", signed_in, {"limit": said}))
    for path in ("/threads", stream, "/fail", "/fail-late"):
        asked.append((path, {"X-API-Key": key_said}, {}))
        asked.append((path, {"X-API-Key": f"{key_said}x"}, {}))
    statuses = set()
    for path, headers, params in asked:
        try:
            statuses.add((await http.get(path, headers=headers, params=params)).status_code)
        except TransportError:
            statuses.add(0)  # an answer that broke off
    assert {0, 200, 401, 404, 422, 500} <= statuses

    written = text_of(log)
    assert written.count("/api/fail-late") > 20, "the access log is on"
    assert written.count("so far so good") == 0
    assert "RuntimeError" in written
    assert "Traceback" in written
    for secret in (good, forged, ticket, key["secret_key"], SECRET):
        for part in secret.split("."):
            assert part[-24:] not in written, f"…{part[-6:]}"
    assert "token=hush" not in written

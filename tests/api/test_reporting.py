"""An API process with a Sentry: one error, one event, and nobody's words in it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from httpx2 import AsyncClient, TransportError
from redis.asyncio import Redis

from services.settings import Settings
from tests.acceptance.client import until
from tests.api.test_canaries import SECRET, answers, serving, token
from tests.collector import Collector
from tests.waiting import eventually


@pytest.fixture
def sentry() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


@pytest.fixture
def url(settings: Settings, redis: Redis, sentry: Collector, tmp_path: Path) -> Iterator[str]:
    dsn = f"{sentry.url.replace('://', '://key@')}/7"
    with serving(settings, tmp_path / "api.log", SENTRY_DSN=dsn, SENTRY_RELEASE="longrun@1") as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[AsyncClient]:
    headers = {"Authorization": f"Bearer {token(SECRET, uuid4())}"}
    async with AsyncClient(base_url=f"{url}/api", headers=headers, trust_env=False, timeout=30) as http:
        await until(lambda: answers(http), within=60)
        yield http


async def test_one_error_is_one_event_with_the_id_of_its_request(http: AsyncClient, sentry: Collector) -> None:
    files = {"files": ("a.txt", b"hush-hush" * 100)}
    fields = {"prompt": "hush-hush", "model_name": "demo/echo"}
    started = await http.post("/agent/initiate", data=fields, files=files, headers={"X-Request-ID": "fine"})
    assert started.status_code == 200, "bodies are left for those who read them"
    assert (await http.get("/threads/nothing")).status_code == 422
    assert (await http.get("/fail?token=hush-hush", headers={"X-Request-ID": "early"})).status_code == 500
    with pytest.raises(TransportError):
        await http.get("/fail-late?token=hush-hush", headers={"X-Request-ID": "late"})
    assert (await http.get("/fail?token=hush-hush", headers={"X-Request-ID": "again"})).status_code == 500
    await eventually(lambda: len(sentry.events) >= 3)
    assert sorted(event["tags"]["request_id"] for event in sentry.events) == ["again", "early", "late"]
    for event in sentry.events:
        assert event["release"] == "longrun@1"
        assert event["exception"]["values"][-1]["type"] == "RuntimeError"
        assert not [frame for frame in event["exception"]["values"][-1]["stacktrace"]["frames"] if frame.get("vars")]
        assert "query_string" not in event["request"]
        assert not {"headers", "cookies", "data", "env"} & event["request"].keys()
        assert "hush" not in str(event)
        assert http.headers["Authorization"][-24:] not in str(event)
    assert {event["request"]["url"].rpartition("/")[2] for event in sentry.events} == {"fail", "fail-late"}

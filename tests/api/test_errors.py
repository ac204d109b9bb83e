from collections.abc import AsyncIterator

import asyncpg
import pytest
from fastapi import FastAPI
from redis import exceptions

from api.app import create_app
from services import threads
from services.postgres import Pool
from services.redis import ServerUnfit
from services.settings import ApiSettings, PostgresSettings, Settings
from tests.api.conftest import Person


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("10.0.0.7 refused"),
        TimeoutError(),
        asyncpg.exceptions.CrashShutdownError("crash"),
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.CannotConnectNowError("starting up"),
        asyncpg.exceptions.AdminShutdownError("terminating"),
        asyncpg.TooManyConnectionsError("too many"),
        asyncpg.InterfaceError("connection is closed"),
        exceptions.ConnectionError("10.0.0.8 refused"),
        exceptions.TimeoutError("slow"),
        asyncpg.DiskFullError("could not extend file"),
        asyncpg.exceptions.OutOfMemoryError("out of memory"),
        asyncpg.exceptions.PostgresIOError("could not write"),
        asyncpg.LockNotAvailableError("lock timeout"),
        asyncpg.QueryCanceledError("statement timeout"),
        asyncpg.exceptions.IdleInTransactionSessionTimeoutError("idle"),
        asyncpg.DeadlockDetectedError("deadlock"),
        exceptions.OutOfMemoryError("no room"),
        exceptions.BusyLoadingError("loading"),
        ServerUnfit("a replica"),
    ],
    ids=repr,
)
async def test_a_store_that_is_away_is_503_with_retry_after(
    ann: Person, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(threads, "page", fail)
    answer = await ann.get("/threads")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json() == {"detail": "A service this needs is not available right now; try again shortly."}


async def test_what_nobody_expected_is_500_without_a_traceback(ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the secret recipe")

    monkeypatch.setattr(threads, "page", fail)
    answer = await ann.get("/threads")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "Internal error."}


async def test_what_postgres_cannot_be_asked_is_500_and_not_worth_a_retry(
    ann: Person, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    async def fail(*_: object, **__: object) -> None:
        await pool.fetchval("SELECT $1::int", "no number")

    monkeypatch.setattr(threads, "page", fail)
    answer = await ann.get("/threads")
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal error."})


async def test_a_thread_deleted_between_check_and_use_is_404(ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise asyncpg.ForeignKeyViolationError("violates foreign key constraint")

    monkeypatch.setattr(threads, "writable", fail)
    thread_id, _ = await ann.make_thread()
    answer = await ann.post(f"/threads/{thread_id}/messages/add", json={"message": "hello"})
    assert answer.status_code == 404


async def test_a_validation_error_does_not_send_the_input_back(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    answer = await ann.post(f"/threads/{thread_id}/messages/add", json={"message": ["a secret"]})
    assert answer.status_code == 422
    assert "a secret" not in answer.text


async def test_a_validation_error_stays_small_whatever_was_sent(ann: Person) -> None:
    for asked in ({"ids": ["a secret"] * 50_000}, {"ids": ["a secret"] * 100}, {"ids": "a secret" * 10_000}):
        answer = await ann.post("/agent-runs/stop", json=asked)
        assert answer.status_code == 422
        assert len(answer.content) < 60_000
        assert "a secret" not in answer.text
    named = {"name": "a", "agentpress_tools": {"t" * 50_000: {"x": "a secret"}}}
    answer = await ann.post("/agents", json=named)
    assert answer.status_code == 422
    assert len(answer.content) < 1_000
    assert "a secret" not in answer.text


async def test_broken_json_is_422(ann: Person) -> None:
    thread_id, _ = await ann.make_thread()
    answer = await ann.post(
        f"/threads/{thread_id}/messages/add", content=b"{", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422


async def test_an_unknown_route_is_404_in_json(ann: Person) -> None:
    answer = await ann.get("/nowhere")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


async def test_the_documentation_is_there(ann: Person) -> None:
    schema = (await ann.get("http://test/openapi.json")).json()
    assert "multipart/form-data" in schema["paths"]["/api/agent/initiate"]["post"]["requestBody"]["content"]
    assert (await ann.get("http://test/docs")).status_code == 200


class TestBodies:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"api": ApiSettings(max_body_bytes=2048)})

    async def test_a_large_body_is_413_by_its_length(self, ann: Person) -> None:
        thread_id, _ = await ann.make_thread()
        answer = await ann.post(f"/threads/{thread_id}/messages/add", json={"message": "x" * 3000})
        assert answer.status_code == 413
        assert answer.json() == {"detail": "The request body is larger than 2048 bytes."}

    async def test_a_large_body_is_413_while_it_arrives(self, ann: Person) -> None:
        thread_id, _ = await ann.make_thread()
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1024
                yield b" " * 1024

        answer = await ann.post(
            f"/threads/{thread_id}/messages/add", content=body(), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert sent < 10_000

    async def test_calling_it_multipart_does_not_lift_the_limit(self, ann: Person) -> None:
        thread_id, _ = await ann.make_thread()
        for path in (f"/thread/{thread_id}/agent/start", "/threads"):
            answer = await ann.post(path, files={"name": (None, "x" * 3000)})
            assert answer.status_code == 413


class TestBrowsers:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"api": ApiSettings(cors_origins=("https://app.example",))})

    async def test_pages_of_a_known_origin_may_read_every_answer_errors_too(
        self, ann: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: object, **__: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(threads, "page", fail)
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
            answer = await ann.get("/threads", headers={"Origin": origin})
            assert answer.status_code == 500
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed

    async def test_a_page_of_a_known_origin_may_ask_and_never_with_cookies(self, nobody: Person) -> None:
        asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        answer = await nobody.options("/threads", headers={**asking, "Access-Control-Request-Headers": "x-api-key"})
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "Access-Control-Allow-Credentials" not in answer.headers
        refused = await nobody.options("/threads", headers={**asking, "Origin": "https://app.example.evil.org"})
        assert refused.status_code == 400
        assert "Access-Control-Allow-Origin" not in refused.headers


async def test_the_api_starts_without_postgres_and_says_503(settings: Settings) -> None:
    nowhere = PostgresSettings.model_validate({"DATABASE_URL": "postgresql://longrun@127.0.0.1:1/longrun"})
    app: FastAPI = create_app(settings.model_copy(update={"postgres": nowhere}))
    async with app.router.lifespan_context(app), Person(app, settings) as ann:
        assert (await ann.get("/health")).status_code == 200
        assert (await ann.get("/threads")).status_code == 503
        ready = await ann.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["dependencies"]["postgres"]["error"] == "Postgres cannot be reached."


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"\xff"),
        ("application/json", b"[" * 100_000),
        ("application/x-www-form-urlencoded", b"&".join(b"name=%d" % n for n in range(100))),
        ("multipart/form-data; boundary=x", b"--y\r\nno form"),
    ],
    ids=["no text", "nested too deeply", "too many fields", "no form"],
)
async def test_a_body_that_cannot_be_read_is_refused_like_one_that_says_something_wrong(
    ann: Person, content_type: str, body: bytes
) -> None:
    path = "/accounts" if "json" in content_type else "/threads"
    answer = await ann.post(path, content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["loc"][0], bool(problem["msg"])) == ("body", True)

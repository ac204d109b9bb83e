"""The real application over ASGI, on a real Postgres and Redis, and people who call it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from api.app import create_app
from services.settings import Settings
from services.tokens import sign_access_token


class Person(AsyncClient):
    """A client that is signed in as one user."""

    def __init__(self, app: FastAPI, settings: Settings, user_id: UUID | None = None) -> None:
        self.user_id = user_id or uuid4()
        token = sign_access_token(settings.auth.secret.get_secret_value(), self.user_id, lifetime=timedelta(minutes=5))
        super().__init__(
            transport=ASGITransport(app, raise_app_exceptions=False),
            base_url="http://test/api",
            headers={"Authorization": f"Bearer {token}"},
        )

    async def make_thread(self, name: str = "Garden") -> tuple[str, str]:
        """A new thread's id and its project's."""
        made = (await self.post("/threads", data={"name": name})).raise_for_status().json()
        return made["thread_id"], made["project_id"]

    async def make_run(self, thread_id: str | None = None, **options: object) -> str:
        """A new run's id, on a new thread unless one is given."""
        thread_id = thread_id or (await self.make_thread())[0]
        started = await self.post(f"/thread/{thread_id}/agent/start", json={"model_name": "demo/echo", **options})
        run_id: str = started.raise_for_status().json()["agent_run_id"]
        return run_id


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def person(app: FastAPI, settings: Settings) -> AsyncIterator[Callable[[], Person]]:
    async with AsyncExitStack() as stack:

        def arrive() -> Person:
            somebody = Person(app, settings)
            stack.push_async_callback(somebody.aclose)
            return somebody

        yield arrive


@pytest.fixture
def ann(person: Callable[[], Person]) -> Person:
    return person()


@pytest.fixture
def bob(person: Callable[[], Person]) -> Person:
    return person()


@pytest.fixture
def nobody(ann: Person) -> Person:
    """A client without a token."""
    del ann.headers["Authorization"]
    return ann

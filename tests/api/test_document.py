"""The application answers as its OpenAPI document says, whatever is asked."""

import copy
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from schemathesis.python import asgi

from api import document
from api.access import OPEN
from api.app import create_app
from services.members import Role
from services.settings import Settings
from services.tokens import sign_access_token
from tests.fuzzing import Effort, Findings, User, explore


@pytest.fixture
def app(settings: Settings, redis: Redis, tmp_path: Path) -> Iterator[FastAPI]:
    """As the explorer asks it: in another thread, on a loop of its own."""
    sandbox = settings.sandbox.model_copy(update={"folder": str(tmp_path / "sandboxes")})
    yield create_app(settings.model_copy(update={"sandbox": sandbox}))
    asgi.shutdown_lifespans()


def signed_in(settings: Settings, user_id: UUID | None = None) -> User:
    """As whoever owns a personal account."""
    user_id = user_id or uuid4()
    token = sign_access_token(settings.auth.secrets[0], user_id, lifetime=timedelta(hours=1))
    return User(str(user_id), {"Authorization": f"Bearer {token}"})


def member(app: FastAPI, settings: Settings, role: Role) -> User:
    """As somebody whom the owner of an account has added to it."""
    owner, guest = signed_in(settings), signed_in(settings)
    account_id = made(app, owner, "/accounts", {"name": "Team"})["account_id"]
    made(app, owner, f"/accounts/{account_id}/members", {"user_id": guest.account_id, "role": role})
    return User(account_id, {**guest.headers, "X-Account-Id": account_id})


def machine(app: FastAPI, settings: Settings) -> User:
    """As a program with an API key."""
    owner = signed_in(settings)
    key = made(app, owner, "/api-keys", {"title": "ci", "scopes": ["admin"]})
    return User(owner.account_id, {"X-API-Key": f"{key['public_key']}:{key['secret_key']}"})


def made(app: FastAPI, user: User, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with asgi.get_client(cast(Any, app)) as client:
        answer = client.post(f"/api{path}", json=body, headers=user.headers)
    answer.raise_for_status()
    made: dict[str, Any] = answer.json()
    return made


def require_nothing_wrong(found: Findings, cases: int) -> None:
    report = "\n\n".join(f"{operation}: {title}\n{says}" for (operation, title), says in found.wrong.items())
    assert not found.wrong, report
    assert found.cases >= cases


def test_every_operation_has_a_name_of_its_own_and_every_link_leads_to_one(app: FastAPI) -> None:
    operations = [operation for _, operation in document.operations_of(app.openapi())]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert set(document.GIVES) <= set(names)
    linked = [link for operation in operations for link in operation["responses"]["200"].get("links", {}).values()]
    assert linked
    assert {link["operationId"] for link in linked} <= set(names)


def test_every_route_says_how_it_refuses_those_who_may_not_ask(app: FastAPI) -> None:
    operations = dict(document.operations_of(app.openapi()))
    assert set(document.PECULIAR) <= set(operations)
    for name, operation in operations.items():
        if name not in OPEN:
            assert {"401", "403", "422"} <= set(operation["responses"]), name


def test_the_api_answers_as_its_document_says(app: FastAPI, settings: Settings) -> None:
    found = explore(app, app.openapi(), signed_in(settings), Effort(fuzzed=2, scenarios=5))
    require_nothing_wrong(found, cases=120)


def test_an_answer_that_the_document_does_not_know_is_found(app: FastAPI, settings: Settings) -> None:
    path = "/api/threads/{thread_id}"
    lying = copy.deepcopy(app.openapi())
    lying["paths"] = {path: {"get": lying["paths"][path]["get"]}}
    del lying["paths"][path]["get"]["responses"]["404"]
    found = explore(app, lying, signed_in(settings), Effort(fuzzed=10))
    assert (f"GET {path}", "Undocumented status code") in found.wrong


VISITORS: dict[str, Callable[[FastAPI, Settings], User]] = {
    "on one's own": lambda app, settings: signed_in(settings),
    "as a program": machine,
    "as an owner": lambda app, settings: member(app, settings, "owner"),
    "as a member": lambda app, settings: member(app, settings, "member"),
    "as a viewer": lambda app, settings: member(app, settings, "viewer"),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("who", VISITORS)
def test_all_that_the_document_suggests_is_answered_as_it_says(app: FastAPI, settings: Settings, who: str) -> None:
    """With those below 20,000 requests and more."""
    found = explore(app, app.openapi(), VISITORS[who](app, settings), Effort(covered=True))
    require_nothing_wrong(found, cases=2_500)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_made_up_requests_are_answered_as_the_document_says(app: FastAPI, settings: Settings) -> None:
    found = explore(app, app.openapi(), signed_in(settings), Effort(fuzzed=100))
    require_nothing_wrong(found, cases=5_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_one_answer_leads_to_is_answered_as_the_document_says(app: FastAPI, settings: Settings) -> None:
    found = explore(app, app.openapi(), signed_in(settings), Effort(scenarios=600))
    require_nothing_wrong(found, cases=2_500)

"""Every route of the OpenAPI document, against everybody who may ask: no hole in the table."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from fastapi import APIRouter, FastAPI
from httpx2 import Response

from api import access
from api.app import create_app
from services import postgres
from services.redis import Client
from services.runs.dispatch import Dispatch
from services.settings import SandboxSettings, Settings
from tests.api.conftest import Person
from tests.api.forgeries import credentials, good
from tests.api.world import Things, add_member, key_of, things_of
from tests.issuer import ISSUER, Issuer, ec_signer, rsa_signer

PREFIX = "/api"
METHODS = {"get", "put", "post", "patch", "delete"}

statements: ContextVar[list[str] | None] = ContextVar("statements", default=None)
"""What the request of this context has asked Postgres and Redis, and has sent to workers, while somebody listens."""


@dataclass(frozen=True)
class Case:
    """How a route is asked so that its owner is answered `own`; texts of JSON and query name things by `{run_id}`."""

    own: int = 200
    json: Any = None
    form: dict[str, str] = field(default_factory=dict)
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def about(self, things: Things, name: str) -> dict[str, Any]:
        """The request that asks for these things."""
        method, _, path = name.partition(" ")
        url = path.format(**things.ids) + self.query.format(**things.ids)
        asked: dict[str, Any] = {"method": method, "url": url, "headers": self.headers}
        if self.json is not None:
            asked["json"] = filled(self.json, things)
        return {**asked, "data": self.form} if self.form else asked


def filled(value: Any, things: Things) -> Any:
    if isinstance(value, str):
        return value.format(**things.ids)
    if isinstance(value, list):
        return [filled(each, things) for each in value]
    return {name: filled(each, things) for name, each in value.items()} if isinstance(value, dict) else value


ASLEEP = 503
"""What the owner is answered where a sandbox is needed: these tests have none."""
START = {"model_name": "demo/echo", "on_active": "queue"}

EVERY_DAY = {"type": "cron", "cron": {"cron_expression": "0 9 * * *"}}

CASES = {
    "GET /health": Case(),
    "GET /health/ready": Case(),
    "POST /agent/initiate": Case(form={"prompt": "hi", "model_name": "demo/echo"}),
    "POST /thread/{thread_id}/agent/start": Case(json=START),
    "POST /agent-run/{run_id}/retry": Case(own=409),
    "POST /agent-run/{run_id}/stop": Case(),
    "POST /agent-runs/stop": Case(json={"ids": ["{run_id}"]}),
    "GET /agent-run/{run_id}": Case(query="?wait_seconds=0.01"),
    "GET /agent-run/{run_id}/stream": Case(own=204, headers={"Last-Event-ID": "1000"}),
    "POST /agent-run/{run_id}/stream-token": Case(),
    "GET /agent-run/{run_id}/webhook-attempts": Case(),
    "GET /thread/{thread_id}/agent-runs": Case(),
    "GET /agent-runs": Case(query="?thread_id={thread_id}&project_id={project_id}"),
    "GET /agent-runs/active": Case(),
    "GET /threads": Case(),
    "POST /threads": Case(form={"name": "New"}),
    "GET /threads/{thread_id}": Case(),
    "PATCH /threads/{thread_id}": Case(json={"title": "Taken"}),
    "DELETE /threads/{thread_id}": Case(),
    "GET /threads/{thread_id}/messages": Case(),
    "POST /threads/{thread_id}/messages": Case(json={"type": "user", "content": "hi"}),
    "POST /threads/{thread_id}/messages/add": Case(json={"message": "hi"}),
    "DELETE /threads/{thread_id}/messages/{message_id}": Case(),
    "GET /projects": Case(),
    "GET /projects/{project_id}": Case(),
    "PATCH /projects/{project_id}": Case(json={"name": "Taken"}),
    "DELETE /projects/{project_id}": Case(),
    "GET /sandboxes/{project_id}/files": Case(own=ASLEEP),
    "GET /sandboxes/{project_id}/files/content": Case(own=ASLEEP, query="?path=notes.txt"),
    "POST /sandboxes/{project_id}/files": Case(own=ASLEEP, form={"path": "notes.txt"}),
    "DELETE /sandboxes/{project_id}/files": Case(own=ASLEEP, query="?path=notes.txt"),
    "GET /agents": Case(),
    "POST /agents": Case(json={"name": "New"}),
    "GET /agents/{agent_id}": Case(),
    "PUT /agents/{agent_id}": Case(json={"name": "Taken"}),
    "DELETE /agents/{agent_id}": Case(),
    "GET /agents/{agent_id}/versions": Case(),
    "POST /agents/{agent_id}/versions": Case(json={"system_prompt": "Taken"}),
    "GET /agents/{agent_id}/versions/{version_id}": Case(),
    "PUT /agents/{agent_id}/versions/{version_id}/activate": Case(),
    "GET /thread/{thread_id}/agent": Case(),
    "GET /workflows": Case(),
    "POST /workflows": Case(json={"name": "New"}),
    "GET /workflows/templates": Case(),
    "GET /workflows/{workflow_id}": Case(),
    "PUT /workflows/{workflow_id}": Case(json={"name": "Taken"}),
    "DELETE /workflows/{workflow_id}": Case(),
    "POST /workflows/{workflow_id}/execute": Case(json={"model_name": "demo/echo"}),
    "GET /workflows/{workflow_id}/webhook": Case(),
    "PUT /workflows/{workflow_id}/webhook": Case(json={"format": "standard"}),
    "POST /workflows/{workflow_id}/webhook/rotate": Case(),
    "DELETE /workflows/{workflow_id}/webhook": Case(),
    "POST /webhooks/trigger/{workflow_id}": Case(own=401),
    "GET /workflows/{workflow_id}/executions": Case(),
    "GET /workflows/executions/{execution_id}": Case(),
    "POST /workflows/executions/{execution_id}/cancel": Case(),
    "GET /workflows/executions/{execution_id}/stream": Case(own=204, headers={"Last-Event-ID": "1000"}),
    "GET /schedules": Case(query="?page=1"),
    "POST /schedules": Case(json={"config": EVERY_DAY, "workflow_id": "{workflow_id}"}),
    "GET /schedules/templates": Case(),
    "POST /schedules/validate/cron": Case(json={"cron_expression": "0 9 * * *"}),
    "GET /schedules/{schedule_id}": Case(),
    "PUT /schedules/{schedule_id}": Case(json={"name": "Taken"}),
    "DELETE /schedules/{schedule_id}": Case(),
    "POST /schedules/{schedule_id}/pause": Case(),
    "POST /schedules/{schedule_id}/resume": Case(),
    "GET /schedules/{schedule_id}/logs": Case(),
    "POST /schedules/trigger/{workflow_id}": Case(own=401),
    "POST /mcp/discover-custom-tools": Case(
        own=ASLEEP, json={"type": "stdio", "config": {"command": "true"}, "project_id": "{project_id}"}
    ),
    "GET /billing/check-status": Case(),
    "GET /billing/available-models": Case(),
    "GET /billing/usage-logs": Case(),
    "GET /api-keys": Case(),
    "POST /api-keys": Case(json={"title": "New"}),
    "PATCH /api-keys/{key_id}/revoke": Case(),
    "DELETE /api-keys/{key_id}": Case(),
    "GET /accounts": Case(),
    "POST /accounts": Case(json={"name": "New"}),
    "DELETE /accounts/{account_id}": Case(),
    "GET /accounts/{account_id}/export": Case(),
    "GET /accounts/{account_id}/members": Case(),
    "POST /accounts/{account_id}/members": Case(json={"user_id": str(uuid4())}),
    "PATCH /accounts/{account_id}/members/{user_id}": Case(json={"role": "viewer"}),
    "DELETE /accounts/{account_id}/members/{user_id}": Case(),
    "POST /accounts/{account_id}/leave": Case(),
    "GET /accounts/{account_id}/webhook-secret": Case(),
    "POST /accounts/{account_id}/webhook-secret/rotate": Case(),
}
PUBLIC = ("project", "thread", "run")
"""What can be seen by whoever is signed in, once its project is public."""
FATAL = {"DELETE /accounts/{account_id}", "POST /accounts/{account_id}/leave"}
"""After these there is nobody left to ask as, or about."""
GUARDED = {name: case for name, case in CASES.items() if name not in access.OPEN}


def names_things(name: str) -> bool:
    """Whether a request to the route says which thing it is about."""
    case = CASES[name]
    return "{" in name or (case.json is not None and "{" in repr(filled_with_names(case.json)))


def filled_with_names(value: Any) -> Any:
    return [text for text in texts_of(value) if "_id}" in text] or ""


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_of(each)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer([rsa_signer(), ec_signer()]) as issuer:
        yield issuer


@pytest.fixture
def settings(settings: Settings, issuer: Issuer) -> Settings:
    auth = issuer.settings(algorithms=("HS256", "RS256", "ES256"), issuer="")
    return settings.model_copy(update={"auth": auth, "sandbox": SandboxSettings(kind="off")})


@pytest.fixture
async def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    prepare = postgres.prepare_connection

    async def prepare_and_listen(conn: asyncpg.Connection) -> None:
        await prepare(conn)
        conn.add_query_logger(note)

    monkeypatch.setattr(postgres, "prepare_connection", prepare_and_listen)
    monkeypatch.setattr(Client, "execute_command", listening(Client.execute_command, first_word))
    monkeypatch.setattr(Client, "ask", listening(Client.ask, lambda commands, *_: f"redis: {len(commands)} commands"))
    monkeypatch.setattr(Dispatch, "send_run", listening(Dispatch.send_run, lambda run, *_: "a message for workers"))
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


def note(query: asyncpg.connection.LoggedQuery) -> None:
    take_note(query.query)


def take_note(said: str) -> None:
    heard = statements.get()
    if heard is not None:
        heard.append(said)


def first_word(command: str, *_: object) -> str:
    return f"redis: {command}"


def listening(method: Callable[..., Any], told: Callable[..., str]) -> Callable[..., Any]:
    """The method of a class, of which every call is noted."""

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        take_note(told(*arguments))
        return method(self, *arguments, **options)

    return call


async def ask(person: Person, name: str, things: Things, **changes: Any) -> Response:
    asked = CASES[name].about(things, name)
    headers = {**asked.pop("headers"), **changes.pop("headers", {})}
    return await person.request(**asked, headers=headers, **changes)


async def heard(person: Person, name: str, things: Things) -> tuple[int, bytes, list[str]]:
    """Status and body of an answer, and the statements, commands and messages that it took."""
    noted: list[str] = []
    token = statements.set(noted)
    answer = await ask(person, name, things)
    await asyncio.sleep(0)  # what was noted is told a moment later
    statements.reset(token)
    return answer.status_code, answer.content, noted


def test_the_table_has_a_line_for_every_route_and_for_no_other(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    routes = {
        f"{method.upper()} {path.removeprefix(PREFIX)}" for path in paths for method in METHODS & set(paths[path])
    }
    assert routes == set(CASES)
    assert set(access.ROUTES) | access.OPEN == set(CASES)


def test_an_application_with_a_route_that_does_not_say_what_it_acts_on_does_not_start() -> None:
    router = APIRouter()
    router.add_api_route("/secret-door", lambda: None, methods=["POST"])
    with pytest.raises(access.Undeclared, match="POST /secret-door"):
        access.require_declared([router])


async def test_what_somebody_else_owns_is_not_there(person: Callable[[], Person]) -> None:
    bob = person()
    await things_of(bob)
    for name in filter(names_things, GUARDED):
        theirs = await things_of(person())
        await heard(bob, name, Things())  # what is prepared once, is
        foreign, missing = await heard(bob, name, theirs), await heard(bob, name, Things())
        assert foreign == missing, name
        assert foreign[0] == 404, (name, foreign)
        assert foreign[2], name
        assert "a message for workers" not in foreign[2], name


async def test_the_owner_is_answered_at_every_route(person: Callable[[], Person]) -> None:
    for name, case in CASES.items():
        ann = person()
        things = await things_of(ann)
        if name.endswith("/stream"):
            for path in (f"/agent-run/{things.run_id}", f"/agent-run/{things.execution_run_id}"):
                await ann.post(f"{path}/stop")
                await ann.get(f"{path}/stream")
        if "/members" in name and "{user_id}" not in name:
            things = Things(**{**things.ids, "user_id": str(uuid4())})
        answer = await ask(ann, name, things)
        assert answer.status_code == case.own, (name, answer.text)


async def test_a_thing_of_somebody_else_is_not_there_inside_ones_own(person: Callable[[], Person]) -> None:
    ann, bob = person(), person()
    hers, his = await things_of(ann), await things_of(bob)
    for inner in ("message_id", "version_id", "user_id"):
        mixed = Things(**{**his.ids, inner: hers.ids[inner]})
        for name in GUARDED:
            if f"{{{inner}}}" in name:
                assert (await ask(bob, name, mixed)).status_code == 404, name


async def test_lists_show_nothing_of_anybody_else(person: Callable[[], Person]) -> None:
    ann, bob = person(), person()
    hers = await things_of(ann)
    await ann.patch(f"/projects/{hers.project_id}", json={"is_public": True})
    for name in GUARDED:
        if not names_things(name):
            answer = await ask(bob, name, hers)
            assert answer.status_code == CASES[name].own, (name, answer.text)
            assert not [each for each in hers.ids.values() if each in answer.text], name


@pytest.mark.parametrize(
    ("public", "shown"),
    [("projects/{project_id}", PUBLIC), ("threads/{thread_id}", ("thread", "run"))],
)
async def test_public_things_may_be_read_by_whoever_signed_in_and_changed_by_nobody_else(
    person: Callable[[], Person], public: str, shown: tuple[str, ...]
) -> None:
    ann, bob = person(), person()
    hers = await things_of(ann)
    (await ann.patch(f"/{public.format(**hers.ids)}", json={"is_public": True})).raise_for_status()
    await ann.post(f"/agent-run/{hers.run_id}/stop")
    await ann.get(f"/agent-run/{hers.run_id}/stream")  # to its end
    for name in filter(names_things, GUARDED):
        declared = access.ROUTES[name]
        answer = await ask(bob, name, hers)
        if declared.on not in shown:
            assert answer.status_code == 404, name
        else:
            assert answer.status_code == (CASES[name].own if declared.action == "read" else 403), (name, answer.text)
    del bob.headers["Authorization"]
    assert (await bob.get(f"/{public.format(**hers.ids)}")).status_code == 401


async def test_nobody_gets_in_who_is_not_who_they_say(nobody: Person, settings: Settings) -> None:
    things = Things()
    for who, headers in credentials(settings).items():
        bodies = {await refusal(nobody, name, things, headers=headers) for name in GUARDED}
        assert len(bodies) == 1, (who, "one refusal for all routes")


async def refusal(nobody: Person, name: str, things: Things, **changes: Any) -> bytes:
    answer = await ask(nobody, name, things, **changes)
    assert answer.status_code == 401, (changes, name, answer.text)
    assert answer.headers["WWW-Authenticate"] == "Bearer", (changes, name)
    return answer.content


async def test_a_token_in_the_address_is_for_streams_alone(nobody: Person, settings: Settings) -> None:
    for name in GUARDED:
        if not name.endswith("/stream"):
            asked = CASES[name].about(Things(), name)
            sign = "&" if "?" in asked["url"] else "?"
            asked["url"] += f"{sign}token={good(settings)}&access_token={good(settings)}"
            assert (await nobody.request(**asked)).status_code == 401, name


async def test_of_two_authorizations_no_second_one_lets_in(nobody: Person, settings: Settings) -> None:
    forged, true = ("Authorization", "Bearer junk"), ("Authorization", f"Bearer {good(settings)}")
    for headers in ([forged, true], [forged, forged]):
        assert (await nobody.get("/threads", headers=headers)).status_code == 401


async def test_a_token_of_another_issuer_opens_nothing(settings: Settings) -> None:
    auth = settings.auth.model_copy(update={"issuer": ISSUER})
    app = create_app(settings.model_copy(update={"auth": auth}))
    async with app.router.lifespan_context(app), Person(app, settings) as somebody:
        for issuer in ("https://impostor.example/auth/v1", f"{ISSUER}/", "", None):
            somebody.headers["Authorization"] = f"Bearer {ec_signer().sign(iss=issuer)}"
            for name in GUARDED:
                await refusal(somebody, name, Things())
        somebody.headers["Authorization"] = f"Bearer {ec_signer().sign()}"
        assert (await somebody.get("/threads")).status_code == 200


async def test_a_stream_is_not_opened_by_a_forged_token_in_its_address(nobody: Person, settings: Settings) -> None:
    for who, headers in credentials(settings).items():
        if token := headers.get("Authorization", "").removeprefix("Bearer "):
            answer = await nobody.get(f"/agent-run/{uuid4()}/stream", params={"token": token})
            assert answer.status_code == 401, who


async def test_a_role_in_an_account_lets_do_what_it_is_for(ann: Person, person: Callable[[], Person]) -> None:
    team = (await things_of(ann)).account_id
    for role in ("owner", "member", "viewer"):
        bob = person()
        await add_member(ann, team, role, bob.user_id)
        for name in GUARDED:
            action = access.ROUTES[name].action
            lets = role == "owner" or action in ("read", "person") or (role == "member" and action == "write")
            if name in FATAL:
                continue
            answer = await ask(bob, name, Things(account_id=team), headers={"X-Account-Id": team})
            assert (answer.status_code != 403) == lets, (role, name, answer.text)
            assert answer.status_code != 401, (role, name)


async def test_the_scopes_of_a_key_let_do_what_they_are_for(ann: Person, person: Callable[[], Person]) -> None:
    team = (await things_of(ann)).account_id
    robot = person()
    del robot.headers["Authorization"]
    actions = {"runs:read": {"read"}, "runs:write": {"write"}, "admin": {"read", "write", "admin"}}
    for scope, allowed in actions.items():
        key = await key_of(ann, scope, account_id=team)
        for name in GUARDED:
            answer = await ask(robot, name, Things(account_id=team), headers={"X-API-Key": key})
            assert (answer.status_code != 403) == (access.ROUTES[name].action in allowed), (scope, name, answer.text)
            assert answer.status_code != 401, (scope, name)


async def test_a_key_opens_no_account_but_its_own(ann: Person, person: Callable[[], Person]) -> None:
    team = (await things_of(ann)).account_id
    key = await key_of(ann, "admin")
    robot = person()
    del robot.headers["Authorization"]
    for account_id in (team, str(uuid4())):
        headers = {"X-API-Key": key, "X-Account-Id": account_id}
        assert (await robot.get("/threads", headers=headers)).status_code == 403
        in_path = await robot.get(f"/accounts/{account_id}/members", headers={"X-API-Key": key})
        assert (in_path.status_code, in_path.json()) == (404, {"detail": "Account not found."})


async def test_a_key_never_does_more_than_whoever_made_it(ann: Person, bob: Person) -> None:
    team = (await things_of(ann)).account_id
    await add_member(ann, team, "owner", bob.user_id)
    headers = {"X-API-Key": await key_of(bob, "admin", account_id=team)}
    del bob.headers["Authorization"]
    assert (await bob.post("/threads", data={"name": "New"}, headers=headers)).status_code == 200
    (await ann.patch(f"/accounts/{team}/members/{bob.user_id}", json={"role": "viewer"})).raise_for_status()
    assert (await bob.post("/threads", data={"name": "New"}, headers=headers)).status_code == 403
    assert (await bob.get("/threads", headers=headers)).status_code == 200
    (await ann.delete(f"/accounts/{team}/members/{bob.user_id}")).raise_for_status()
    assert (await bob.get("/threads", headers=headers)).status_code == 401

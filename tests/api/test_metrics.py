"""GET /metrics of the API: who may read it, and what it says."""

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from api.app import create_app
from services.settings import Settings
from tests.api.conftest import Person
from tests.services.metrics.reading import Told, series

TOKEN = "a-token-of-the-tests"


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    shown = settings.metrics.model_copy(update={"token": SecretStr(TOKEN)})
    app = create_app(settings.model_copy(update={"metrics": shown}))
    async with app.router.lifespan_context(app):
        yield app


async def told(person: Person) -> Told:
    answer = await person.get("http://test/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return Told(answer.raise_for_status().text)


async def test_with_a_token_of_theirs_only_prometheus_may_read(ann: Person) -> None:
    answer = await ann.get("http://test/metrics")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await told(ann)).value("longrun_processes") >= 1
    assert (await ann.post("http://test/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 405


async def test_without_a_token_nobody_whose_connection_is_not_known_learns_of_it(settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app), Person(app, settings) as ann:
        answer, unknown = await ann.get("http://test/metrics"), await ann.get("http://test/metriks")
    assert (
        (answer.status_code, answer.json()) == (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
    )


async def test_requests_are_counted_by_the_template_of_their_route(ann: Person) -> None:
    before = await told(ann)
    run_id = await ann.make_run()
    await ann.get(f"/agent-run/{run_id}")
    await ann.get("/agent-run/junk")
    await ann.get("/no/such/thing")
    await ann.request("BREW", "/no/such/thing")
    after = await told(ann)
    name = "longrun_http_request_duration_seconds_count"

    def counted(**labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert counted(method="GET", route="/agent-run/{run_id}", status="2xx") == 1
    assert counted(method="GET", route="/agent-run/{run_id}", status="4xx") == 1
    assert counted(method="GET", route="unknown", status="4xx") == 1
    assert counted(method="other", route="unknown", status="4xx") == 1
    assert not [each for each in after.samples if run_id in str(each.labels) or "junk" in str(each.labels)]


async def test_runs_are_told_as_the_database_has_them(ann: Person, app: FastAPI) -> None:
    stopped, _ = await ann.make_run(), await ann.make_run()
    (await ann.post(f"/agent-run/{stopped}/stop")).raise_for_status()
    answer = await told(ann)
    assert answer.value("longrun_runs_ended", status="stopped") == 1
    assert answer.value("longrun_runs_ended") == 1
    assert answer.value("longrun_runs_unfinished", phase="queued") == 1
    assert answer.value("longrun_database_up") == 1
    assert answer.value("longrun_postgres_pool_limit", pool="main") == app.state.resources.settings.postgres.pool_max
    assert answer.value("longrun_postgres_query_duration_seconds_count") > 0
    assert answer.value("longrun_broker_up") == 1
    assert answer.value("longrun_broker_messages", queue="agent_runs", state="dead") == 0
    assert answer.value("longrun_schedules_due") == answer.value("longrun_webhooks_untold") == 0


NAMES = 200


async def test_whatever_people_name_makes_no_series(ann: Person) -> None:
    async def ask(number: int) -> None:
        """As somebody does who has a name for everything."""
        name = f"name_{number}"
        thread_id, _ = await ann.make_thread()
        await ann.get(f"/{name}/{number}")
        await ann.get(f"http://test/{name}", headers={"Host": f"{name}.test", "X-Request-ID": name})
        await ann.request(name.upper(), "/threads")
        await ann.get(f"/agent-run/{name}")
        await ann.get(f"/threads?{name}={number}")
        await ann.post(f"/thread/{thread_id}/agent/start", json={"model_name": f"{name}/{name}"})
        server = {"name": name, "type": "sse", "config": {"url": f"https://{name}.test/sse"}, "enabledTools": [name]}
        made = await ann.post("/agents", json={"name": name, "system_prompt": name, "custom_mcps": [server]})
        assert made.status_code == 200, made.text
        await ann.post(f"/webhooks/trigger/{name}", json={})

    await ask(0)
    before = series().keys()
    for number in range(1, NAMES):
        await ask(number)
    assert {each for each in series().keys() - before if "postgres" not in each[0]} == set()
    assert not [each for each in series() if "name_" in str(each).lower()]

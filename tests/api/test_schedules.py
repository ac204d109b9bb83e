"""Schedules over HTTP: made, changed, paused, logged, refused by name."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient

from services.http import open_client
from services.postgres import Pool
from services.runs.stores import open_stores
from services.settings import ScheduleSettings, Settings
from tests.api.conftest import Person
from tests.api.world import DAILY, WATERING, made
from worker.process import Process
from worker.scheduler import Local

MINUTELY = {"type": "cron", "cron": {"cron_expression": "* * * * *"}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"schedules": ScheduleSettings(max_per_account=5)})


async def workflow_of(person: Person, **fields: Any) -> str:
    workflow = await made(person, "/workflows", {"name": "Watering", "state": "ACTIVE", **WATERING, **fields})
    return str(workflow["id"])


async def schedule_of(person: Person, **fields: Any) -> dict[str, Any]:
    """Of an agent, on a thread of its own."""
    about = {} if "workflow_id" in fields else {"prompt": "Water the roses"}
    return await made(person, "/schedules", {"name": "Roses", "config": MINUTELY, **about, **fields})


async def refused(person: Person, **fields: Any) -> tuple[str, str]:
    """Where and why a schedule cannot be made."""
    answer = await person.post("/schedules", json={"prompt": "hi", "config": DAILY, **fields})
    assert answer.status_code == 422, answer.text
    said = answer.json()["detail"][0]
    return ".".join(map(str, said["loc"][1:])), said["msg"]


async def test_a_schedule_of_a_workflow_is_shown_as_it_was_made(ann: Person) -> None:
    workflow_id = await workflow_of(ann)
    config = {
        "type": "advanced",
        "advanced": {"cron_expression": "0 9  * * MON-FRI", "timezone": "Europe/Berlin", "max_executions": 3},
    }
    new = await schedule_of(ann, workflow_id=workflow_id, config=config, variables={"bed": 7}, missed="skip")
    assert (new["workflow_id"], new["variables"], new["missed"]) == (workflow_id, {"bed": 7}, "skip")
    assert (new["status"], new["sync"], new["execution_count"]) == ("active", "ready", 0)
    assert new["config"]["enabled"] is True
    assert new["config"]["advanced"]["cron_expression"] == "0 9 * * MON-FRI"
    assert datetime.fromisoformat(new["next_execution"]) > datetime.now(UTC)
    assert (await ann.get(f"/schedules/{new['id']}")).json() == new
    assert (await ann.get(f"/v1/schedules/{new['id']}")).json() == new


async def test_a_schedule_of_an_agent_is_on_a_thread_that_is_there_or_new(ann: Person, bob: Person) -> None:
    thread_id, _ = await ann.make_thread()
    assert (await schedule_of(ann, thread_id=thread_id))["thread_id"] == thread_id
    own = (await schedule_of(ann))["thread_id"]
    assert (await ann.get(f"/threads/{own}")).json()["metadata"] == {"title": "Roses"}
    answer = await bob.post("/schedules", json={"prompt": "hi", "config": DAILY, "thread_id": thread_id})
    assert answer.status_code == 404


async def test_lists_are_paged_and_may_be_of_one_workflow(ann: Person) -> None:
    workflow_id = await workflow_of(ann)
    ids = [(await schedule_of(ann))["id"] for _ in range(3)]
    other = (await schedule_of(ann, workflow_id=workflow_id))["id"]
    page = (await ann.get("/schedules?page=2&page_size=2")).json()
    assert ([each["id"] for each in page["schedules"]], page["total"]) == ([ids[1], ids[0]], 4)
    assert (page["page"], page["page_size"]) == (2, 2)
    only = (await ann.get(f"/schedules?workflow_id={workflow_id}")).json()
    assert ([each["id"] for each in only["schedules"]], only["total"]) == ([other], 1)


async def test_a_paused_schedule_has_no_next_time_until_it_is_resumed(ann: Person) -> None:
    path = f"/schedules/{(await schedule_of(ann))['id']}"
    for _ in range(2):
        paused = (await ann.post(f"{path}/pause")).json()
        assert (paused["status"], paused["next_execution"], paused["config"]["enabled"]) == ("paused", None, False)
    for _ in range(2):
        resumed = (await ann.post(f"{path}/resume")).json()
        assert (resumed["status"], resumed["config"]["enabled"]) == ("active", True)
        assert resumed["next_execution"]
    made_off = await schedule_of(ann, config={**MINUTELY, "enabled": False})
    assert (made_off["status"], made_off["next_execution"]) == ("paused", None)


async def test_a_change_keeps_what_it_does_not_name(ann: Person) -> None:
    before = await schedule_of(ann)
    path = f"/schedules/{before['id']}"
    after = (await ann.put(path, json={"name": "Tulips", "config": DAILY})).raise_for_status().json()
    assert (after["name"], after["prompt"], after["config"]) == (
        "Tulips",
        "Water the roses",
        {**DAILY, "enabled": True},
    )
    soonest = datetime.now(UTC) + timedelta(hours=23, minutes=58)
    assert datetime.fromisoformat(after["next_execution"]) > soonest
    again = (await ann.put(path, json={"config": DAILY})).json()
    assert again == after, "the same config changes nothing"


async def test_a_deleted_schedule_is_gone(ann: Person) -> None:
    path = f"/schedules/{(await schedule_of(ann))['id']}"
    assert (await ann.delete(path)).status_code == 200
    assert [(await ann.request(verb, path)).status_code for verb in ("GET", "DELETE")] == [404, 404]


async def test_deleting_a_workflow_or_thread_deletes_its_schedules(ann: Person) -> None:
    workflow_id = await workflow_of(ann)
    await schedule_of(ann, workflow_id=workflow_id)
    thread_id = (await schedule_of(ann))["thread_id"]
    (await ann.delete(f"/workflows/{workflow_id}")).raise_for_status()
    (await ann.delete(f"/threads/{thread_id}")).raise_for_status()
    assert (await ann.get("/schedules")).json()["total"] == 0


ADVANCED = {"cron_expression": "0 9 * * *"}
BAD = [
    ({"config": {"type": "cron", "cron": {"cron_expression": "61 * * * *"}}}, "config.cron.cron_expression"),
    ({"config": {"type": "cron", "cron": {"cron_expression": "0 0 31 2 *"}}}, "config.cron.cron_expression"),
    ({"config": {"type": "cron", "cron": {"cron_expression": "0 0 */31 2 1#5"}}}, "config.cron.cron_expression"),
    ({"config": {"type": "cron", "cron": {"cron_expression": "*" * 5_000}}}, "config.cron.cron_expression"),
    ({"config": {"type": "cron"}}, "config"),
    ({"config": {"type": "yearly"}}, "config.type"),
    (
        {"config": {"type": "simple", "simple": {"interval_type": "minutes", "interval_value": 0}}},
        "config.simple.interval_value",
    ),
    (
        {"config": {"type": "simple", "simple": {"interval_type": "weeks", "interval_value": 53}}},
        "config.simple.interval_value",
    ),
    ({"config": {"type": "advanced", "advanced": {**ADVANCED, "timezone": "Mars/Base"}}}, "config.advanced.timezone"),
    ({"config": {"type": "advanced", "advanced": {**ADVANCED, "timezone": "../etc"}}}, "config.advanced.timezone"),
    (
        {
            "config": {
                "type": "advanced",
                "advanced": {**ADVANCED, "start_date": "2030-01-02T00:00:00Z", "end_date": "2030-01-01T00:00:00Z"},
            }
        },
        "config.advanced.end_date",
    ),
    ({"config": {"type": "advanced", "advanced": {**ADVANCED, "end_date": "2020-01-01T00:00:00Z"}}}, "config"),
    ({"config": {"type": "advanced", "advanced": {**ADVANCED, "start_date": "9999-12-31T23:59:00Z"}}}, "config"),
    ({"config": {"type": "advanced", "advanced": {**ADVANCED, "max_executions": 0}}}, "config.advanced.max_executions"),
    ({"missed": "sometimes"}, "missed"),
    ({"prompt": None}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"model_name": "nobody/nothing"}, "model_name"),
    ({"variables": {"big": "x" * 70_000}}, "variables"),
]


@pytest.mark.parametrize(("fields", "place"), BAD)
async def test_what_is_wrong_is_named(fields: dict[str, Any], place: str, ann: Person) -> None:
    assert (await refused(ann, **fields))[0] == place


async def test_variables_are_judged_by_the_workflow(ann: Person) -> None:
    step = {"id": "in", "type": "INPUT", "config": {"variables": [{"name": "who", "type": "string"}]}}
    workflow_id = await workflow_of(ann, entry_point="in", steps=[step])
    assert await refused(ann, prompt=None, workflow_id=workflow_id) == ("variables.who", "who is required")
    assert (await refused(ann, workflow_id=workflow_id))[0] == "workflow_id"
    assert (await schedule_of(ann, workflow_id=workflow_id, variables={"who": "Ann"}))["variables"] == {"who": "Ann"}


async def test_an_account_has_only_so_many_schedules(ann: Person) -> None:
    for _ in range(5):
        await schedule_of(ann)
    assert "it has 5" in (await refused(ann))[1]


async def test_dates_without_an_offset_are_by_the_clocks_of_the_zone(ann: Person) -> None:
    told = {**ADVANCED, "timezone": "Asia/Tokyo", "start_date": "2031-05-01T00:00:00"}
    new = await schedule_of(ann, config={"type": "advanced", "advanced": told})
    assert new["next_execution"] == "2031-05-01T00:00:00Z"


async def test_cron_expressions_are_judged_and_told(ann: Person) -> None:
    asked = {"cron_expression": "30 2 * * *", "timezone": "America/New_York"}
    answer = (await ann.post("/schedules/validate/cron", json=asked)).json()
    assert (answer["valid"], answer["cron_expression"], answer["error"]) == (True, "30 2 * * *", None)
    assert answer["description"] == "At 02:30 every day"
    assert len(answer["next_executions"]) == 5
    for wrong in ({"cron_expression": "99 * * * *"}, {"cron_expression": "0 0 31 2 *"}, {**asked, "timezone": "Mars"}):
        answer = (await ann.post("/schedules/validate/cron", json=wrong)).json()
        assert (answer["valid"], answer["next_executions"], answer["description"]) == (False, [], None)
        assert answer["error"]


async def test_templates_are_configs_that_can_be_used(ann: Person) -> None:
    templates = (await ann.get("/schedules/templates")).json()["templates"]
    for template in templates:
        new = await schedule_of(ann, config=template["config"])
        await ann.delete(f"/schedules/{new['id']}")


async def test_logs_tell_what_came_of_each_firing(ann: Person, settings: Settings, pool: Pool) -> None:
    schedule = await schedule_of(ann, model_name="demo/echo")
    due = datetime.fromisoformat(schedule["next_execution"])
    async with open_stores(settings) as stores, open_client(settings) as http:
        for minute in range(4):
            await fire_at(settings, stores, http, due + timedelta(minutes=minute))
    path = f"/schedules/{schedule['id']}/logs"
    first = (await ann.get(f"{path}?limit=3")).json()
    last = (await ann.get(f"{path}?limit=3&cursor={first['next_cursor']}")).json()
    rows = [*first["logs"], *last["logs"]]
    assert [each["status"] for each in rows] == ["skipped", "started", "started", "started"]
    assert (rows[3]["run_status"], last["next_cursor"]) == ("queued", None)
    assert datetime.fromisoformat(rows[3]["scheduled_time"]) == due
    run = (await ann.get(f"/agent-run/{rows[3]['agent_run_id']}")).json()
    assert run["metadata"] == {"schedule_id": schedule["id"]}
    shown = (await ann.get(f"/schedules/{schedule['id']}")).json()
    assert (shown["execution_count"], shown["error_count"]) == (3, 0)


async def fire_at(settings: Settings, stores: Any, http: AsyncClient, moment: datetime) -> None:
    await Local(Process(settings, stores, http), lambda: moment).tick()


async def test_a_delivery_of_qstash_is_refused_for_good_where_workers_wake_schedules(ann: Person, pool: Pool) -> None:
    schedule = await schedule_of(ann)
    await pool.execute("UPDATE schedules SET next_fire_at = now()")
    path, body = f"/schedules/trigger/{schedule['id']}", {"schedule_id": schedule["id"]}
    answer = await ann.post(path, json=body, headers={"Upstash-Signature": "a.b.c", "Upstash-Message-Id": "1"})
    assert (answer.status_code, answer.headers["Upstash-NonRetryable-Error"]) == (489, "true")
    assert "SCHEDULES=local" in answer.json()["detail"]
    assert (await ann.post(path, json=body)).status_code == 401
    assert (await ann.get(f"/schedules/{schedule['id']}/logs")).json()["logs"] == []

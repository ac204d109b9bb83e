"""Workflows that wait outlast everything: all processes and all stores are stopped and started again."""

import time
from typing import Any
from uuid import UUID

import pytest

from tests.acceptance.client import check_whole_log, follow, until
from tests.faults.lab import Lab

STEPS = [
    {"id": "wait", "type": "WAIT", "config": {"seconds": 3600}, "next_steps": ["note"]},
    {"id": "note", "type": "TRANSFORM", "config": {"expression": "variables"}},
]
HELD = "SELECT id FROM agent_runs WHERE id = ANY($1) AND (status <> 'queued' OR instance_id IS NOT NULL)"


async def make_workflow(lab: Lab) -> str:
    asked = {"name": "Patience", "state": "ACTIVE", "entry_point": "wait", "steps": STEPS}
    made: str = (await lab.client.http.post("/workflows", json=asked)).raise_for_status().json()["id"]
    return made


async def execute(lab: Lab, workflow_id: str) -> str:
    answer = await lab.client.http.post(f"/workflows/{workflow_id}/execute", json={"variables": {"a": 1}})
    run_id: str = answer.raise_for_status().json()["agent_run_id"]
    return run_id


async def phases(lab: Lab, run_ids: list[str]) -> set[str]:
    return {(await lab.client.get(run_id))["phase"] for run_id in run_ids}


async def all_set_aside(lab: Lab, run_ids: list[str]) -> bool:
    begun = await lab.deployment.rows("SELECT count(*) FROM workflow_steps WHERE wake_at > now() + interval '1 minute'")
    return begun[0][0] == len(run_ids) and await phases(lab, run_ids) == {"waiting"}


async def check_nobody_holds(lab: Lab, run_ids: list[str]) -> None:
    """No row, no key and no message is in the hands of a worker, once it has let go of the last one."""
    assert not await lab.deployment.rows(HELD, list(map(UUID, run_ids)))
    await until(lambda: no_key_is_held(lab), within=5.0, says="a key is held")  # sooner than it would expire
    await until(lambda: no_message_is_held(lab), within=60, every=0.2, says="a message is held")


async def no_key_is_held(lab: Lab) -> bool:
    async with lab.deployment.redis() as redis:
        keys = [key.decode() async for key in redis.scan_iter("a*_run*", count=1000)]
    return not [key for key in keys if key.startswith(("agent_run_lock:", "active_run:"))]


async def no_message_is_held(lab: Lab) -> bool:
    listed = await lab.servers.rabbitmq.ctl("list_queues", "--silent", "messages")
    return set(listed.split()) - {"messages"} == {"0"}


async def pass_time(lab: Lab, minutes: int) -> None:
    """For everything of a workflow that has a time in it."""
    moved: dict[str, tuple[str, ...]] = {
        "agent_runs": ("not_before", "parked_at", "started_at", "created_at"),
        "workflow_steps": ("wake_at",),
    }
    for table, names in moved.items():
        columns = ", ".join(f"{name} = {name} - interval '{minutes} minutes'" for name in names)
        of_workflows = "WHERE kind = 'workflow'" if table == "agent_runs" else ""
        await lab.deployment.execute(f"UPDATE {table} SET {columns} {of_workflows}")


async def restart_everything(lab: Lab) -> None:
    for process in lab.deployment.operated:
        process.end()
    for server in reversed(lab.servers.all):
        await server.stop()
    await lab.whole()


@pytest.mark.slow
async def test_waits_of_an_hour_survive_a_restart_of_everything_and_hold_no_worker_thread(lab: Lab) -> None:
    """More of them than the workers have threads; in between they do other work."""
    await lab.whole()
    began = time.monotonic()
    workflow_id = await make_workflow(lab)
    run_ids = [await execute(lab, workflow_id) for _ in range(lab.workers * lab.threads + 8)]
    await until(lambda: all_set_aside(lab, run_ids), within=60, says="not all wait")
    await check_nobody_holds(lab, run_ids)
    await lab.probe()
    await restart_everything(lab)
    await lab.probe()
    assert await phases(lab, run_ids) == {"waiting"}
    await check_nobody_holds(lab, run_ids)
    await pass_time(lab, 30)
    await lab.probe()
    assert await phases(lab, run_ids) == {"waiting"}
    await pass_time(lab, 30)
    await lab.all_completed(run_ids)
    for run_id in run_ids:
        events = await follow(lab.client, run_id)
        check_whole_log(events, "completed")
        assert [event.status_type for event in events].count("run_resumed") == 1
    await check_rows(lab, run_ids, time.monotonic() - began)


async def check_rows(lab: Lab, run_ids: list[str], seconds: float) -> None:
    """Each was driven twice, and what it waited for is no time of work."""
    rows: list[Any] = await lab.deployment.rows(
        "SELECT attempt, crashes, waited FROM agent_runs WHERE id = ANY($1)", list(map(UUID, run_ids))
    )
    assert {(row["attempt"], row["crashes"]) for row in rows} == {(2, 0)}
    assert all(3500 < row["waited"].total_seconds() < 3600 + seconds for row in rows)

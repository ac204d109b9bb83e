"""What is somebody else's, where a request names several things or none; test_access.py asks at every route."""

from uuid import uuid4

from tests.api.conftest import Person
from tests.api.world import made


async def test_one_foreign_run_among_many_stops_none(ann: Person, bob: Person) -> None:
    mine, theirs = await bob.make_run(), await ann.make_run()
    assert (await bob.post("/agent-runs/stop", json={"ids": [mine, theirs]})).status_code == 404
    assert (await bob.get(f"/agent-run/{mine}")).json()["phase"] == "queued"


async def test_a_foreign_agent_is_not_there(ann: Person, bob: Person) -> None:
    thread_id, _ = await bob.make_thread()
    foreign = (await made(ann, "/agents", {"name": "Gardener"}))["agent_id"]
    for agent_id in (foreign, str(uuid4())):
        answer = await bob.post(f"/thread/{thread_id}/agent/start", json={"agent_id": agent_id})
        assert answer.status_code == 404
        assert answer.json() == {"detail": "Agent not found."}

"""What one person has, one thing of each kind that a route may act on."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from tests.api.conftest import Person


def absent() -> str:
    return str(uuid4())


WATERING = {
    "entry_point": "water",
    "steps": [{"id": "water", "type": "TRANSFORM", "config": {"expression": "variables"}}],
}


DAILY = {"type": "simple", "simple": {"interval_type": "days", "interval_value": 1}}


@dataclass(frozen=True)
class Things:
    """Ids by the names of path parameters; by default of things that are not there."""

    thread_id: str = field(default_factory=absent)
    project_id: str = field(default_factory=absent)
    run_id: str = field(default_factory=absent)
    message_id: str = field(default_factory=absent)
    agent_id: str = field(default_factory=absent)
    version_id: str = field(default_factory=absent)
    key_id: str = field(default_factory=absent)
    account_id: str = field(default_factory=absent)
    user_id: str = field(default_factory=absent)
    workflow_id: str = field(default_factory=absent)
    execution_id: str = field(default_factory=absent)
    execution_run_id: str = field(default_factory=absent)
    schedule_id: str = field(default_factory=absent)

    @property
    def ids(self) -> dict[str, str]:
        return dict(vars(self))


async def things_of(person: Person) -> Things:
    """One of each: a thread with a message and a run, an agent, a workflow with an execution and a schedule, a key.

    And an account with two owners.
    """
    thread_id, project_id = await person.make_thread()
    message = await made(person, f"/threads/{thread_id}/messages/add", {"message": "hi"})
    agent = await made(person, "/agents", {"name": "Gardener"})
    account_id = (await made(person, "/accounts", {"name": "Team"}))["account_id"]
    user_id = await add_member(person, account_id, "owner")
    workflow = await made(person, "/workflows", {"name": "Watering", **WATERING})
    (await person.put(f"/workflows/{workflow['id']}/webhook", json={"format": "standard"})).raise_for_status()
    execution = await made(person, f"/workflows/{workflow['id']}/execute", {"model_name": "demo/echo"})
    return Things(
        thread_id=thread_id,
        project_id=project_id,
        run_id=await person.make_run(thread_id),
        message_id=message["message_id"],
        agent_id=agent["agent_id"],
        version_id=agent["current_version_id"],
        key_id=(await made(person, "/api-keys", {"title": "ci"}))["key_id"],
        account_id=account_id,
        user_id=user_id,
        workflow_id=workflow["id"],
        execution_id=execution["execution_id"],
        execution_run_id=execution["agent_run_id"],
        schedule_id=(await made(person, "/schedules", {"config": DAILY, "workflow_id": workflow["id"]}))["id"],
    )


async def made(person: Person, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = (await person.post(path, json=body)).raise_for_status().json()
    return answer


async def add_member(person: Person, account_id: str, role: str, user_id: UUID | None = None) -> str:
    member = await made(person, f"/accounts/{account_id}/members", {"user_id": str(user_id or uuid4()), "role": role})
    return str(member["user_id"])


async def key_of(person: Person, *scopes: str, account_id: str | None = None) -> str:
    """What a request with a new key says in X-API-Key."""
    headers = {"X-Account-Id": account_id} if account_id else {}
    answer = await person.post("/api-keys", json={"title": "ci", "scopes": scopes}, headers=headers)
    key = answer.raise_for_status().json()
    return f"{key['public_key']}:{key['secret_key']}"

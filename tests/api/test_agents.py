"""Agents and their versions, over HTTP."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.postgres import Pool
from services.runs import store
from tests.api.conftest import Person

WORD = "hunter2-of-this-test"
MCP = {
    "name": "Search",
    "type": "http",
    "config": {"url": "https://mcp.example/x", "headers": {"Authorization": f"Bearer {WORD}"}},
    "enabledTools": ["find"],
}
KNOWN = {"name": "Exa", "qualifiedName": "exa", "config": {"exaApiKey": WORD}, "enabledTools": []}


async def make(person: Person, name: str = "Gardener", **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = (await person.post("/agents", json={"name": name, **fields})).raise_for_status().json()
    return made


async def change(person: Person, agent: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = await person.put(f"/agents/{agent['agent_id']}", json=fields)
    changed: dict[str, Any] = answer.raise_for_status().json()
    return changed


async def names(person: Person, **query: Any) -> list[str]:
    found = (await person.get("/agents", params=query)).raise_for_status().json()["agents"]
    return [agent["name"] for agent in found]


async def test_an_agent_is_made_with_its_first_version(ann: Person) -> None:
    agent = await make(
        ann, description="Knows plants", system_prompt="You garden.", agentpress_tools={"sb_files_tool": True},
        custom_mcps=[MCP], avatar="🌱", avatar_color="#0f0", icon_name="ignored",
    )  # fmt: skip
    assert set(agent) == {
        "agent_id", "account_id", "name", "description", "system_prompt", "configured_mcps", "custom_mcps",
        "agentpress_tools", "is_default", "avatar", "avatar_color", "created_at", "updated_at", "current_version_id",
        "version_count", "current_version",
    }  # fmt: skip
    assert (agent["name"], agent["system_prompt"], agent["version_count"]) == ("Gardener", "You garden.", 1)
    assert agent["current_version"]["version_id"] == agent["current_version_id"]
    assert agent["current_version"]["version_name"] == "v1"
    assert agent["current_version"]["is_active"]
    assert (await ann.get(f"/agents/{agent['agent_id']}")).json() == agent


async def test_a_change_of_what_it_works_with_makes_a_version_and_nothing_else_does(ann: Person) -> None:
    first = await make(ann, system_prompt="One", custom_mcps=[MCP], configured_mcps=[KNOWN])
    same = {name: first[name] for name in ("system_prompt", "custom_mcps", "configured_mcps", "agentpress_tools")}
    renamed = await change(ann, first, name="Florist", description="New", avatar="🌷", **same)
    assert (renamed["version_count"], renamed["current_version_id"]) == (1, first["current_version_id"])
    assert (renamed["name"], renamed["description"], renamed["avatar"]) == ("Florist", "New", "🌷")
    changes: list[tuple[dict[str, Any], int]] = [
        ({"system_prompt": "Two"}, 2),
        ({"system_prompt": None}, 2),
        ({"agentpress_tools": {"sb_shell_tool": {"enabled": True, "description": "Commands"}}}, 3),
        ({"custom_mcps": [MCP]}, 3),
        ({"custom_mcps": []}, 4),
        ({"configured_mcps": [{**KNOWN, "config": {"exaApiKey": "another"}}]}, 5),
    ]
    for parts, count in changes:
        assert (await change(ann, first, **parts))["version_count"] == count
    assert (await ann.get(f"/agents/{first['agent_id']}")).json()["system_prompt"] == "Two"


async def test_versions_are_listed_shown_and_made_current_again(ann: Person, pool: Pool) -> None:
    agent = await make(ann, system_prompt="One")
    path = f"/agents/{agent['agent_id']}/versions"
    second = (await ann.post(path, json={"system_prompt": "Two", "version_name": "better"})).raise_for_status().json()
    assert (second["version_number"], second["version_name"], second["is_active"]) == (2, "better", True)
    same = (await ann.post(path, json={"system_prompt": "Two"})).raise_for_status().json()
    assert same["version_number"] == 3, "a version that is asked for is made"
    listed = (await ann.get(path)).json()
    assert [version["version_number"] for version in listed] == [3, 2, 1]
    assert (await ann.get(f"{path}/{second['version_id']}")).json() == {**second, "is_active": False}
    activated = await ann.put(f"{path}/{agent['current_version_id']}/activate")
    assert activated.raise_for_status().json()["system_prompt"] == "One"
    assert (await change(ann, agent, system_prompt="Four"))["version_count"] == 4
    run = await store.get(pool, UUID(await ann.make_run(agent_id=agent["agent_id"])))
    assert run
    assert (await ann.get(f"{path}/{run.agent_version_id}")).json()["system_prompt"] == "Four"


async def test_a_version_of_another_agent_is_not_there(ann: Person) -> None:
    one, other = await make(ann), await make(ann)
    path = f"/agents/{one['agent_id']}/versions/{other['current_version_id']}"
    for answer in (await ann.get(path), await ann.put(f"{path}/activate")):
        assert (answer.status_code, answer.json()) == (404, {"detail": "Agent version not found."})


async def test_parallel_changes_of_one_agent_lose_nothing(ann: Person) -> None:
    agent = await make(ann)
    path = f"/agents/{agent['agent_id']}"
    prompts = [ann.put(path, json={"system_prompt": f"Prompt {number}"}) for number in range(8)]
    tools = [ann.post(f"{path}/versions", json={"agentpress_tools": {f"tool_{n}": True}}) for n in range(4)]
    answers = await asyncio.gather(*prompts, *tools)
    assert {answer.status_code for answer in answers} == {200}
    versions = (await ann.get(f"{path}/versions")).json()
    assert [version["version_number"] for version in versions] == list(range(13, 0, -1))
    now = (await ann.get(path)).json()
    assert (now["version_count"], now["current_version_id"]) == (13, versions[0]["version_id"])
    assert now["system_prompt"].startswith("Prompt ")
    assert len(now["agentpress_tools"]) == 1, "neither change has undone the other"


async def test_of_parallel_defaults_one_is_left(ann: Person) -> None:
    made = await asyncio.gather(*(make(ann, f"Agent {number}", is_default=number % 2 == 0) for number in range(6)))
    await asyncio.gather(*(change(ann, agent, is_default=True) for agent in made))
    assert len(await names(ann, has_default=True)) == 1
    assert len(await names(ann, has_default=False)) == 5


async def test_the_default_agent_cannot_be_deleted_until_another_one_is(ann: Person) -> None:
    first, second = await make(ann, is_default=True), await make(ann)
    refused = await ann.delete(f"/agents/{first['agent_id']}")
    assert refused.status_code == 409
    assert "default agent cannot be deleted" in refused.json()["detail"]
    await change(ann, second, is_default=True)
    assert (await ann.delete(f"/agents/{first['agent_id']}")).status_code == 200
    assert (await ann.get(f"/agents/{first['agent_id']}")).status_code == 404


async def test_runs_and_messages_of_a_deleted_agent_stay(ann: Person, pool: Pool) -> None:
    agent = await make(ann)
    thread_id, _ = await ann.make_thread()
    run_id = await ann.make_run(thread_id, agent_id=agent["agent_id"])
    await pool.execute(
        "INSERT INTO messages (thread_id, type, content, agent_id, agent_version_id) VALUES ($1, 'user', '{}', $2, $3)",
        UUID(thread_id),
        UUID(agent["agent_id"]),
        UUID(agent["current_version_id"]),
    )
    await ann.delete(f"/agents/{agent['agent_id']}")
    run = await store.get(pool, UUID(run_id))
    assert run
    assert (run.agent_id, run.agent_version_id, run.status) == (None, None, "queued")
    (message,) = (await ann.get(f"/threads/{thread_id}/messages")).json()["messages"]
    assert (message["agent_id"], message["agent_version_id"]) == (None, None)


async def test_secrets_are_neither_in_the_rows_nor_in_any_answer_nor_in_the_log(
    ann: Person, pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    agent = await make(ann, custom_mcps=[MCP], configured_mcps=[KNOWN])
    path = f"/agents/{agent['agent_id']}"
    masked = {"url": "https://mcp.example/x", "headers": {"Authorization": "***"}}
    assert agent["custom_mcps"] == [{**MCP, "config": masked}]
    assert agent["configured_mcps"] == [{**KNOWN, "config": {"exaApiKey": "***"}}]
    changed = await change(
        ann,
        agent,
        custom_mcps=[{**MCP, "config": masked, "enabledTools": []}],
        system_prompt="More",
        configured_mcps=[KNOWN],
    )
    bad = await ann.put(path, json={"custom_mcps": [{**MCP, "type": "carrier pigeon"}]})
    moved = await ann.put(path, json={"custom_mcps": [{**MCP, "config": {**masked, "url": "https://thief.example"}}]})
    assert (bad.status_code, moved.status_code) == (422, 422)
    answers = [
        changed,
        bad.json(),
        moved.json(),
        (await ann.get("/agents")).json(),
        (await ann.get(f"{path}/versions")).json(),
        (await ann.put(f"{path}/versions/{agent['current_version_id']}/activate")).json(),
    ]
    rows = await pool.fetch("SELECT * FROM agent_versions")
    assert len(rows) == 2
    log = capfd.readouterr()
    assert WORD not in str([answers, [dict(row) for row in rows], log.out, log.err])
    assert str(rows).count("sealed") == 4


async def test_a_page_of_agents_is_searched_filtered_and_sorted(ann: Person, bob: Person) -> None:
    await make(bob, "Bob's")
    await make(ann, "beta", description="100% shade", agentpress_tools={"sb_shell_tool": True, "sb_files_tool": True})
    await make(ann, "Alpha", custom_mcps=[MCP], agentpress_tools={"sb_shell_tool": False})
    await make(ann, "gamma", is_default=True, agentpress_tools={"web_search_tool": {"enabled": True}})
    assert await names(ann) == ["gamma", "Alpha", "beta"]
    assert await names(ann, sort_by="name", sort_order="asc") == ["Alpha", "beta", "gamma"]
    assert (await names(ann, sort_by="tools_count"))[0] == "beta"
    assert await names(ann, search="ALP") == ["Alpha"]
    assert await names(ann, search="0% s") == ["beta"]
    assert await names(ann, search="_") == []
    assert await names(ann, has_default=True) == ["gamma"]
    assert await names(ann, has_mcp_tools=True) == ["Alpha"]
    assert await names(ann, has_agentpress_tools=False) == ["Alpha"]
    assert await names(ann, tools="sb_files_tool, web_search_tool") == ["gamma", "beta"]
    assert await names(ann, tools="mcp:Search") == ["Alpha"]
    page = (await ann.get("/agents", params={"page": 2, "limit": 2})).json()
    assert [agent["name"] for agent in page["agents"]] == ["beta"]
    assert page["pagination"] == {"page": 2, "limit": 2, "total": 3, "pages": 2}


async def test_a_list_that_cannot_be_had_names_what_is_wrong(ann: Person) -> None:
    wrong: dict[str, Any] = {"sort_by": "colour", "sort_order": "up", "limit": 101, "page": 0, "has_default": "perhaps"}
    for field, value in wrong.items():
        answer = await ann.get("/agents", params={field: value})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["query", field]


BAD_FIELDS: list[tuple[str, Any]] = [
    ("name", ""),
    ("name", "x" * 201),
    ("name", "\x00"),
    ("system_prompt", "x" * 100_001),
    ("system_prompt", 7),
    ("description", "x" * 5_001),
    ("is_default", "perhaps"),
    ("agentpress_tools", ["sb_shell_tool"]),
    ("agentpress_tools", {f"tool_{number}": True for number in range(201)}),
    ("agentpress_tools", {"sb_shell_tool": {"enabled": "perhaps"}}),
    ("configured_mcps", [{"config": {}}]),
    ("configured_mcps", [KNOWN, KNOWN]),
    ("configured_mcps", [{"name": f"S{number}"} for number in range(21)]),
    ("custom_mcps", [{**MCP, "type": "pigeon"}]),
    ("custom_mcps", [{**MCP, "config": {}}]),
    ("custom_mcps", [{**MCP, "config": {"url": "file:///etc/passwd"}}]),
    ("custom_mcps", [{"name": "x", "type": "stdio", "config": {"command": " "}}]),
    ("custom_mcps", [{**MCP, "config": {"url": "https://a.example", "x": "y" * 17_000}}]),
    ("custom_mcps", [{**MCP, "enabledTools": ["x"] * 501}]),
]


async def test_a_bad_field_is_named_and_nothing_is_kept(ann: Person) -> None:
    agent = await make(ann)
    for field, value in BAD_FIELDS:
        made = await ann.post("/agents", json={"name": "New", field: value})
        changed = await ann.put(f"/agents/{agent['agent_id']}", json={field: value})
        for answer in (made, changed):
            assert answer.status_code == 422, (field, str(value)[:100])
            assert answer.json()["detail"][0]["loc"][:2] == ["body", field]
    assert await names(ann) == ["Gardener"]
    assert (await ann.get(f"/agents/{agent['agent_id']}")).json() == agent


async def test_a_mask_without_a_secret_behind_it_is_refused_by_its_place(ann: Person) -> None:
    answer = await ann.post(
        "/agents",
        json={"name": "A", "custom_mcps": [{**MCP, "config": {"url": "https://a.example", "headers": {"A": "***"}}}]},
    )
    assert answer.status_code == 422
    assert "custom_mcps.0.config.headers.A" in answer.json()["detail"][0]["msg"]


ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/agents/{}", None),
    ("PUT", "/agents/{}", {"name": "Mine"}),
    ("PUT", "/agents/{}", {"is_default": True}),
    ("DELETE", "/agents/{}", None),
    ("GET", "/agents/{}/versions", None),
    ("POST", "/agents/{}/versions", {"system_prompt": "Mine"}),
    ("GET", "/agents/{}/versions/{version}", None),
    ("PUT", "/agents/{}/versions/{version}/activate", None),
]


async def test_a_foreign_agent_is_not_there(ann: Person, bob: Person) -> None:
    agent = await make(ann)
    version = agent["current_version_id"]
    for method, path, body in ROUTES:
        foreign = await bob.request(method, path.format(agent["agent_id"], version=version), json=body)
        absent = await bob.request(method, path.format(uuid4(), version=version), json=body)
        assert foreign.status_code == absent.status_code == 404, (method, path)
        assert foreign.content == absent.content
    assert (await ann.get(f"/agents/{agent['agent_id']}")).json() == agent
    assert await names(bob) == []


async def test_a_start_without_an_agent_works_as_the_default_one(ann: Person, bob: Person, pool: Pool) -> None:
    await make(bob, is_default=True)
    plain = await store.get(pool, UUID(await ann.make_run()))
    agent = await make(ann, is_default=True)
    run = await store.get(pool, UUID(await ann.make_run()))
    assert plain
    assert run
    assert (plain.agent_id, plain.agent_version_id) == (None, None)
    assert (str(run.agent_id), str(run.agent_version_id)) == (agent["agent_id"], agent["current_version_id"])


async def test_all_runs_of_a_thread_that_builds_an_agent_do_so(ann: Person, bob: Person, pool: Pool) -> None:
    await make(ann, is_default=True)
    target = await make(ann, "Target")
    builds = {"prompt": (None, "Build it"), "is_agent_builder": (None, "true"), "model_name": (None, "demo/echo")}
    named = {**builds, "target_agent_id": (None, target["agent_id"])}
    begun = (await ann.post("/agent/initiate", files=named)).raise_for_status().json()
    runs = [begun["agent_run_id"], await ann.make_run(begun["thread_id"])]
    for run_id in runs:
        run = await store.get(pool, UUID(run_id))
        assert run
        assert run.settings["is_agent_builder"] is True
        assert run.settings["target_agent_id"] == target["agent_id"]
        assert run.agent_id is None, "it works as none"
    assert (await bob.post("/agent/initiate", files=named)).status_code == 404
    nameless = await ann.post("/agent/initiate", files=builds)
    assert nameless.json()["detail"][0]["loc"] == ["body", "target_agent_id"]
    await ann.delete(f"/agents/{target['agent_id']}")
    assert (await ann.post(f"/thread/{begun['thread_id']}/agent/start")).status_code == 404


async def test_the_agent_of_a_thread_is_its_newest_run_s_or_the_default(ann: Person, bob: Person) -> None:
    thread_id, _ = await ann.make_thread()
    none = (await ann.get(f"/thread/{thread_id}/agent")).json()
    assert (none["agent"], none["source"]) == (None, "none")
    default = await make(ann, "Usual", is_default=True)
    offered = (await ann.get(f"/thread/{thread_id}/agent")).json()
    assert (offered["agent"], offered["source"]) == (default, "default")
    other = await make(ann, "Special")
    await ann.make_run(thread_id, agent_id=other["agent_id"])
    recent = (await ann.get(f"/thread/{thread_id}/agent")).json()
    assert (recent["agent"], recent["source"]) == (other, "recent")
    assert "Special" in recent["message"]
    assert (await bob.get(f"/thread/{thread_id}/agent")).status_code == 404
    await ann.patch(f"/threads/{thread_id}", json={"is_public": True})
    assert (await bob.get(f"/thread/{thread_id}/agent")).json() == none, "a reader learns nothing of the agent"


async def test_a_run_remembers_that_it_had_an_agent_when_that_is_deleted_before_it_begins(
    ann: Person, pool: Pool
) -> None:
    agent = await make(ann, agentpress_tools={})
    thread_id, _ = await ann.make_thread()
    run_id = UUID(await ann.make_run(thread_id, agent_id=agent["agent_id"]))
    await ann.delete(f"/agents/{agent['agent_id']}")
    run = await store.get(pool, run_id)
    assert run
    assert (run.agent_id, run.settings["agent_id"]) == (None, agent["agent_id"])
    await pool.execute("UPDATE agent_runs SET status = 'failed', completed_at = now() WHERE id = $1", run_id)
    again = await ann.post(f"/agent-run/{run_id}/retry")
    assert (again.status_code, again.json()["detail"]) == (404, "Agent not found.")

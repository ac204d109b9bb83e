"""Versions of agents as workers know them, and as the API forgets them."""

from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from services import accounts, agent_versions, agents
from services.agents import Agent, Change
from services.postgres import transaction
from services.runs.stores import Stores
from services.secrets import Secrets, SecretUnreadable
from tests.waiting import eventually

OLD, NEW = Secrets(["an-old-key-of-32-characters-or-more"]), Secrets(["a-new-key-of-32-characters-or-more!"])
CANARY = "hunter2-hunter2"
PARTS = {
    "system_prompt": "You know plants.",
    "custom_mcps": [{"name": "S", "type": "http", "config": {"url": "https://a.example/", "headers": {"A": CANARY}}}],
}


async def make_agent(stores: Stores) -> tuple[UUID, Agent]:
    await eventually(lambda: stores.versions.cache and stores.versions.cache.known.changes, says="it listens")
    async with transaction(stores.pool) as conn:
        account_id = (await accounts.ensure_personal(conn, uuid4())).account_id
        return account_id, await agents.create(conn, OLD, account_id, Change(PARTS, {"name": "A"}))


async def test_a_version_is_asked_of_the_database_once_and_its_secrets_stay_sealed(
    stores: Stores, redis: Redis
) -> None:
    account_id, agent = await make_agent(stores)
    assert agent.current_version_id
    for _ in range(3):
        version = await stores.versions.opened(account_id, agent.current_version_id, OLD)
        assert version
        assert version.custom_mcps[0]["config"]["headers"] == {"A": CANARY}
        assert version.system_prompt == "You know plants."
        await stores.pool.execute("DELETE FROM agents")  # and nobody says so
    assert stores.versions.cache
    assert stores.versions.cache.counts.hits == 2
    (stored,) = await redis.hvals(f"cache:agent_versions:{account_id}")
    assert b"plants" in stored
    assert CANARY.encode() not in stored
    assert CANARY not in repr(stores.versions.cache.known.found)


async def test_what_redis_gives_back_is_the_row(stores: Stores) -> None:
    account_id, agent = await make_agent(stores)
    assert agent.current_version_id
    row = await agent_versions.find(stores.pool, agent.current_version_id)
    assert await stores.versions.find(account_id, agent.current_version_id) == row
    assert stores.versions.cache
    stores.versions.cache.known.forget_all()
    assert await stores.versions.find(account_id, agent.current_version_id) == row
    assert stores.versions.cache.counts.shared == 1


async def test_deleted_versions_are_forgotten(stores: Stores, redis: Redis) -> None:
    account_id, agent = await make_agent(stores)
    assert agent.current_version_id
    assert await stores.versions.find(account_id, agent.current_version_id)
    await stores.pool.execute("DELETE FROM agents")
    await stores.versions.forget(account_id)
    assert await redis.hkeys(f"cache:agent_versions:{account_id}") == [b""]
    assert await stores.versions.opened(account_id, agent.current_version_id, OLD) is None


async def test_a_version_that_was_encrypted_anew_is_read_anew(stores: Stores) -> None:
    account_id, agent = await make_agent(stores)
    assert agent.current_version_id
    version = await stores.versions.find(account_id, agent.current_version_id)
    assert version
    both = Secrets(["a-new-key-of-32-characters-or-more!", "an-old-key-of-32-characters-or-more"])
    await agent_versions.keep_renewed(stores.pool, version.renewed(both))
    opened = await stores.versions.opened(account_id, agent.current_version_id, NEW)
    assert opened
    assert opened.custom_mcps[0]["config"]["headers"] == {"A": CANARY}
    with pytest.raises(SecretUnreadable):
        await stores.versions.opened(account_id, agent.current_version_id, Secrets(["k" * 32]))

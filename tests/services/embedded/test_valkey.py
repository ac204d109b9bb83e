"""The embedded Valkey."""

from redis.asyncio import Redis

from services.embedded import valkey
from services.embedded.state import State
from services.embedded.supervisor import Supervisor


def client(state: State, database: int = 0) -> Redis:
    return Redis.from_url(valkey.url(state.port("valkey"), state.password, database), decode_responses=True)


async def test_it_never_evicts_and_always_logs(supervisor: Supervisor, state: State) -> None:
    await supervisor.start(valkey.prepare(state))
    async with client(state) as redis:
        settings = await redis.config_get("maxmemory-policy", "appendonly", "bind")
    assert settings == {"maxmemory-policy": "noeviction", "appendonly": "yes", "bind": "127.0.0.1"}


async def test_data_survives_a_restart(supervisor: Supervisor, state: State) -> None:
    await supervisor.start(valkey.prepare(state))
    async with client(state, 1) as redis:
        await redis.set("kept", "yes", ex=60)
    await supervisor.stop_all()
    await supervisor.start(valkey.prepare(state))
    async with client(state, 1) as redis:
        assert await redis.get("kept") == "yes"


async def test_its_password_is_readable_by_its_owner_only(state: State) -> None:
    valkey.prepare(state)
    assert (state.folder / "valkey" / "valkey.conf").stat().st_mode & 0o077 == 0

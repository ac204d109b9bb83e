"""API keys over two processes that share Postgres and Redis."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from services import accounts, api_keys, known_keys, members
from services.api_keys import ApiKey
from services.channels import Channels
from services.errors import Unauthenticated
from services.known_keys import KnownKeys
from services.postgres import Pool, transaction
from services.redis import open_redis
from services.settings import ApiKeySettings, RedisSettings, Settings
from tests.waiting import eventually

MADE_UP = "pk_0000:sk_0000"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def make(
    pool: Pool, settings: Settings, user_id: UUID | None = None, *, account_id: UUID | None = None, **options: object
) -> tuple[ApiKey, str]:
    """A key, and what a request says with it."""
    fields = {"title": "ci", "description": "", "scopes": ["runs:read"], "days": None, **options}
    user_id = user_id or uuid4()
    async with transaction(pool) as conn:
        await accounts.ensure_personal(conn, user_id)
        key, secret = await api_keys.create(conn, settings.api_keys, account_id or user_id, user_id, **fields)  # type: ignore[arg-type]
    return key, f"{key.public_key}:{secret}"


async def revoke(pool: Pool, key: ApiKey) -> None:
    async with transaction(pool) as conn:
        await api_keys.revoke(conn, key.account_id, key.key_id)


@asynccontextmanager
async def process(
    settings: Settings, pool: Pool, redis_settings: RedisSettings, clock: Clock
) -> AsyncIterator[KnownKeys]:
    """What one API process knows."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(redis_settings))
        channels = Channels(redis_settings)
        channels.open()
        stack.push_async_callback(channels.close)
        known = KnownKeys(settings.api_keys, pool, redis, channels, clock)
        known.open()
        stack.push_async_callback(known.close)
        yield known


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def processes(settings: Settings, pool: Pool, redis: Redis, clock: Clock) -> AsyncIterator[list[KnownKeys]]:
    async with (
        process(settings, pool, settings.redis, clock) as one,
        process(settings, pool, settings.redis, clock) as other,
    ):
        await eventually(lambda: one.known.changes and other.known.changes, says="both listen")
        yield [one, other]


async def refused(known: KnownKeys, said: str, *, saying: str | None = None) -> None:
    with pytest.raises(Unauthenticated, match=saying):
        await known.holder(said)


async def test_a_key_stands_for_whoever_made_it(pool: Pool, settings: Settings, processes: Sequence[KnownKeys]) -> None:
    key, said = await make(pool, settings, scopes=["admin", "runs:read"])
    holder = await processes[0].holder(said)
    assert (holder.key_id, holder.account_id, holder.user_id) == (key.key_id, key.account_id, key.created_by)
    assert holder.role == "owner"
    assert holder.scopes == {"admin", "runs:read"}


async def test_neither_row_nor_key_shows_the_secret(pool: Pool, settings: Settings) -> None:
    key, said = await make(pool, settings)
    secret = said.partition(":")[2]
    row = await pool.fetchrow("SELECT * FROM api_keys")
    assert row
    assert secret not in repr(dict(row)) + repr(key)
    assert secret.encode() not in row["secret_hash"]


async def test_the_same_secret_under_another_pepper_is_another(pool: Pool, settings: Settings, redis: Redis) -> None:
    _, said = await make(pool, settings)
    other = ApiKeySettings.model_validate({"pepper": "another-pepper-of-32-characters-or-more"})
    with pytest.raises(Unauthenticated):
        await api_keys.holder_of(pool, other, *api_keys.halves(said))


@pytest.mark.parametrize(
    "wrong", ["", "pk_a", "pk_a:sk_b:c", "sk_b:pk_a", "pk_ä:sk_b", f"pk_{'a' * 99}:sk_b", "pk_a:sk_b\n"]
)
async def test_what_is_no_key_costs_no_statement(processes: Sequence[KnownKeys], pool: Pool, wrong: str) -> None:
    await pool.close()
    await refused(processes[0], wrong, saying="must be pk_")


async def test_half_a_key_and_one_that_is_not_there_are_refused_alike(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys]
) -> None:
    key, said = await make(pool, settings)
    wrong = f"{key.public_key}:{said.partition(':')[2][:-1]}A" if not said.endswith("A") else f"{said[:-1]}B"
    for each in (wrong, MADE_UP):
        await refused(processes[0], each, saying=api_keys.INVALID)


async def test_a_key_that_is_known_costs_no_statement_for_a_minute(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys], clock: Clock
) -> None:
    key, said = await make(pool, settings)
    await processes[0].holder(said)
    await pool.execute("DELETE FROM api_keys WHERE key_id = $1", key.key_id)  # and nobody says so
    clock.now += 59
    await processes[0].holder(said)
    clock.now += 2
    await refused(processes[0], said)


async def test_a_key_that_expires_within_the_minute_is_known_until_then(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys], clock: Clock
) -> None:
    key, said = await make(pool, settings, days=1)
    await pool.execute("UPDATE api_keys SET expires_at = now() + interval '20 s' WHERE key_id = $1", key.key_id)
    await processes[0].holder(said)
    await pool.execute("UPDATE api_keys SET expires_at = now() WHERE key_id = $1", key.key_id)
    clock.now += 21
    await refused(processes[0], said, saying="expired")


async def test_a_revoked_key_is_void_at_once_in_every_process(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys]
) -> None:
    key, said = await make(pool, settings)
    for known in processes:
        await known.holder(said)
    await revoke(pool, key)
    await processes[0].announce(key.account_id)
    await refused(processes[0], said, saying="revoked")
    await eventually(lambda: not processes[1].known.found)
    await refused(processes[1], said, saying="revoked")


async def test_changes_of_one_account_leave_the_keys_of_others_known(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys]
) -> None:
    key, said = await make(pool, settings)
    _, others = await make(pool, settings)
    for each in (said, others):
        await processes[0].holder(each)
    await processes[0].announce(key.account_id)
    assert len(processes[0].known.found) == 1


async def test_what_was_looked_up_before_a_revocation_is_not_kept_after_it(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys]
) -> None:
    key, said = await make(pool, settings)

    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("LOCK TABLE api_keys")  # the look-up waits here
        looking = asyncio.create_task(processes[1].holder(said))
        await eventually(lambda: pool.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))
        before = processes[1].known.changes
        await processes[0].announce(key.account_id)
        await eventually(lambda: processes[1].known.changes > before)
    await looking
    assert not processes[1].known.found


async def test_after_a_lost_connection_nothing_counts_as_known(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys], redis: Redis
) -> None:
    _, said = await make(pool, settings)
    await processes[1].holder(said)
    await redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: not processes[1].known.found)


async def test_without_redis_a_key_can_be_used_and_revoked_and_the_minute_holds(
    pool: Pool, settings: Settings, clock: Clock
) -> None:
    nowhere = RedisSettings.model_validate({"url": "redis://127.0.0.1:9/0"})
    key, said = await make(pool, settings)
    async with process(settings, pool, nowhere, clock) as one, process(settings, pool, nowhere, clock) as other:
        for known in (one, other):
            await known.holder(said)
        await revoke(pool, key)
        await one.announce(key.account_id)
        await refused(one, said)
        await other.holder(said)
        clock.now += 61
        await refused(other, said)


async def test_the_key_of_a_former_member_is_void(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys]
) -> None:
    owner, member = uuid4(), uuid4()
    async with transaction(pool) as conn:
        team = (await accounts.create(conn, owner, "Team")).account_id
        await members.add(conn, team, member, "member")
    _, said = await make(pool, settings, member, account_id=team)
    assert (await processes[0].holder(said)).role == "member"
    async with transaction(pool) as conn:
        await members.remove(conn, team, member)
    await processes[0].announce(team)
    await refused(processes[0], said, saying="does not belong")


async def test_a_key_without_an_end_never_expires_and_one_with_an_end_does(pool: Pool, settings: Settings) -> None:
    endless, _ = await make(pool, settings)
    ending, _ = await make(pool, settings, days=30)
    assert endless.expires_at is None
    assert ending.expires_at
    assert timedelta(days=29) < ending.expires_at - datetime.now(UTC) <= timedelta(days=30)


async def test_when_a_key_was_last_used_is_written_together_and_once_a_minute(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys]
) -> None:
    keys = [await make(pool, settings) for _ in range(3)]
    for known in processes:
        for _, said in keys:
            await known.holder(said)
    for known in processes:
        await known.keep_use()
    shown = await pool.fetch("SELECT last_used_at, xmin::text FROM api_keys")
    assert len({row["xmin"] for row in shown}) == 1, "one statement, by the process that came first"
    assert all(datetime.now(UTC) - row["last_used_at"] < timedelta(minutes=1) for row in shown)
    assert not processes[0].used


async def test_the_use_of_keys_is_kept_when_a_process_ends(
    pool: Pool, settings: Settings, redis: Redis, clock: Clock
) -> None:
    key, said = await make(pool, settings)
    async with process(settings, pool, settings.redis, clock) as known:
        await known.holder(said)
    assert await pool.fetchval("SELECT last_used_at FROM api_keys WHERE key_id = $1", key.key_id)


async def test_what_a_process_knows_is_bounded(
    pool: Pool, settings: Settings, processes: Sequence[KnownKeys], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_keys, "MAX_KNOWN", 2)
    processes[0].known.most = 2
    for _ in range(4):
        _, said = await make(pool, settings)
        await processes[0].holder(said)
    assert len(processes[0].known.found) == len(processes[0].used) == 2

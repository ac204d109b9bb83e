"""The end of a run is told to its webhook: at least once, signed, whatever the receiver or a worker does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest

from services.postgres import Pool, transaction
from services.runs import lifecycle
from services.runs.fence import Fence
from services.secrets import Secrets
from services.settings import OutgoingSettings, Settings, WebhookSettings
from services.webhooks import account_secrets, claims, deliveries, sending, signatures
from services.webhooks.deliveries import Standing
from services.webhooks.signatures import BadSignature
from tests.services.runs.seeds import Place, age, claim, eventually, make_place, make_run, set_columns
from tests.sites import Asked, Page, redirect, site
from tests.worker.conftest import open_process
from worker import deliveries as loop
from worker import sweeper
from worker.deliveries import Deliveries, keep_delivering
from worker.process import Process

WINDOW = timedelta(minutes=5)
OK = Page(b"thanks")
QUICK = WebhookSettings(
    attempts=4,
    first_delay=timedelta(milliseconds=20),
    max_delay=timedelta(milliseconds=100),
    timeout=timedelta(seconds=20),
    poll_interval=timedelta(milliseconds=30),
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhooks": QUICK, "outgoing": OutgoingSettings(allow_private=True)})


def hooked(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"webhooks": settings.webhooks.model_copy(update=changes)})


@asynccontextmanager
async def delivering(process: Process) -> AsyncIterator[None]:
    task = process.stores.background.spawn(keep_delivering(process))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(pool: Pool, url: str, place: Place | None = None, *, count: int = 1) -> list[UUID]:
    """Runs that have ended, and are to be told of."""
    run = await make_run(pool, place, metadata={"order": 7})
    query = """
        UPDATE agent_runs SET status = 'completed', completed_at = now(), started_at = now(), closed_at = now(),
            webhook_url = $2 WHERE id = $1
    """
    await pool.execute(query, run.id, url)
    copies = """
        INSERT INTO agent_runs
            (account_id, project_id, thread_id, status, model_name, webhook_url, completed_at, closed_at)
        SELECT account_id, project_id, thread_id, status, model_name, webhook_url, completed_at, closed_at
        FROM agent_runs, generate_series(2, $2) WHERE id = $1 RETURNING id
    """
    return [run.id, *(row["id"] for row in await pool.fetch(copies, run.id, count))]


async def standing(pool: Pool, run_id: UUID) -> Standing:
    account_id = await pool.fetchval("SELECT account_id FROM agent_runs WHERE id = $1", run_id)
    return await deliveries.of_run(pool, account_id, run_id)


async def until(pool: Pool, run_id: UUID, state: str) -> Standing:
    async def look() -> Standing | None:
        found = await standing(pool, run_id)
        return found if found.shown == state else None

    found: Standing = await eventually(look, says=f"{run_id} never was {state}")
    return found


async def keys_of(pool: Pool, settings: Settings, run_id: UUID) -> list[str]:
    account_id = await pool.fetchval("SELECT account_id FROM agent_runs WHERE id = $1", run_id)
    secrets = Secrets.of(settings.secrets)
    return (await account_secrets.of_accounts(pool, secrets, [account_id]))[account_id].keys(secrets)


def verified(asked: Asked, *keys: str) -> dict[str, Any]:
    """What a receiver is told that believes nobody."""
    for key in keys:
        signatures.verify([key], asked.headers, asked.body, datetime.now(UTC), WINDOW)
    told: dict[str, Any] = orjson.loads(asked.body)
    return told


async def test_a_run_that_has_ended_is_told_once_signed_with_the_secret_of_its_account(
    process: Process, settings: Settings
) -> None:
    pool = process.stores.pool
    async with site({"/hook": OK}) as receiver, delivering(process):
        [run_id] = await ended(pool, receiver.url("/hook"))
        told_of = await until(pool, run_id, "delivered")
        await asyncio.sleep(0.2)
    [asked] = receiver.asked
    told = verified(asked, *await keys_of(pool, settings, run_id))
    run = await set_columns(pool, run_id)
    assert asked.headers["webhook-id"] == f"run_{run_id}"
    assert asked.headers["content-type"] == "application/json"
    assert told["type"] == "agent_run.completed"
    assert {told["id"], told["thread_id"], told["project_id"]} == {str(run_id), str(run.thread_id), str(run.project_id)}
    assert (told["status"], told["error"], told["metadata"]) == ("completed", None, {"order": 7})
    assert datetime.fromisoformat(told["completed_at"]) == run.completed_at
    [attempt] = told_of.attempts or []
    assert (attempt["number"], attempt["status_code"], attempt["error"]) == (1, 200, None)
    assert attempt["response_excerpt"] is None


async def test_however_a_run_ends_its_webhook_is_told(process: Process) -> None:
    stores, pool = process.stores, process.stores.pool
    driven, waiting, stopped, expired, unclosed = [await make_run(pool) for _ in range(5)]
    async with site({"/hook": OK}) as receiver:
        for run in (driven, waiting, stopped, expired, unclosed):
            await set_columns(pool, run.id, webhook_url=receiver.url("/hook"))
        claimed = await claim(stores, driven)
        fence = Fence(driven.id, claimed.attempt, stores.instance_id)
        assert await lifecycle.end(pool, fence, "failed", error="It broke.", usage={"total_tokens": 3})
        assert await lifecycle.request_stops(pool, [stopped.id])
        await age(pool, expired.id, "expires_at")
        await sweeper.end_expired(stores)
        assert await lifecycle.end_from_outside(pool, unclosed.id, unclosed.attempt, "failed", error="Gone.")
        await age(pool, unclosed.id, "completed_at")  # its log can never be closed
        for run in (driven, stopped, expired):
            await set_columns(pool, run.id, closed_at=datetime.now(UTC))
        async with delivering(process):
            for run in (driven, stopped, expired, unclosed):
                await until(pool, run.id, "delivered")
        assert (await standing(pool, waiting.id)).shown == "waiting"
    told = {body["id"]: body for body in (orjson.loads(asked.body) for asked in receiver.asked)}
    assert {run_id: body["status"] for run_id, body in told.items()} == {
        str(driven.id): "failed",
        str(stopped.id): "stopped",
        str(expired.id): "failed",
        str(unclosed.id): "failed",
    }
    assert (told[str(driven.id)]["error"], told[str(driven.id)]["usage"]) == ("It broke.", {"total_tokens": 3})
    assert told[str(expired.id)]["error"] == sweeper.EXPIRED


async def test_a_receiver_that_fails_is_told_again_with_the_same_id_until_it_takes_it(settings: Settings) -> None:
    failing = {"/hook": Page(b"x" * 5000, status=500)}
    persistent = hooked(settings, attempts=50)
    async with open_process(persistent) as process, site(failing) as receiver, delivering(process):
        pool = process.stores.pool
        [run_id] = await ended(pool, receiver.url("/hook"))
        await eventually(lambda: len(receiver.asked) >= 2)
        receiver.pages["/hook"] = OK
        told_of = await until(pool, run_id, "delivered")
    assert {asked.headers["webhook-id"] for asked in receiver.asked} == {f"run_{run_id}"}
    assert len({asked.body for asked in receiver.asked}) == 1
    attempts = told_of.attempts or []
    assert [attempt["number"] for attempt in attempts] == list(range(1, len(receiver.asked) + 1))
    assert [attempt["status_code"] for attempt in attempts] == [500] * (len(attempts) - 1) + [200]
    assert "status 500" in attempts[0]["error"]
    assert attempts[0]["response_excerpt"] == "x" * 200


async def test_a_receiver_that_is_down_is_given_up_after_so_many_attempts(process: Process) -> None:
    pool = process.stores.pool
    async with site({}) as receiver:
        url = receiver.url("/hook")
    async with delivering(process):
        [run_id] = await ended(pool, url)
        told_of = await until(pool, run_id, "failed")
    attempts = told_of.attempts or []
    assert len(attempts) == QUICK.attempts
    assert all("could not be reached" in attempt["error"] for attempt in attempts)


async def test_a_receiver_that_says_gone_is_never_told_again(process: Process) -> None:
    pool = process.stores.pool
    async with site({"/hook": Page(status=410)}) as receiver, delivering(process):
        [run_id] = await ended(pool, receiver.url("/hook"))
        await until(pool, run_id, "gone")
        await asyncio.sleep(0.3)
        assert len(receiver.asked) == 1


async def test_a_redirect_is_not_followed(process: Process) -> None:
    pool = process.stores.pool
    async with site({"/inner": OK}) as inner, site({"/hook": redirect(inner.url("/inner"))}) as receiver:
        async with delivering(process):
            [run_id] = await ended(pool, receiver.url("/hook"))
            told_of = await until(pool, run_id, "failed")
        assert not inner.asked
    assert "redirects are not followed" in (told_of.attempts or [])[0]["error"]


async def test_a_receiver_that_is_not_on_the_public_internet_is_not_told(settings: Settings) -> None:
    closed = hooked(settings, attempts=2).model_copy(update={"outgoing": OutgoingSettings()})
    async with open_process(closed) as process, site({"/hook": OK}) as receiver, delivering(process):
        pool = process.stores.pool
        for url in (receiver.url("/hook"), receiver.url("/hook", host="localhost"), "http://169.254.169.254/x"):
            [run_id] = await ended(pool, url)
            told_of = await until(pool, run_id, "failed")
            assert "cannot be made" in (told_of.attempts or [])[0]["error"]
        assert not receiver.asked


async def test_a_receiver_that_hangs_or_drips_is_left_in_time(settings: Settings) -> None:
    impatient = hooked(settings, timeout=timedelta(seconds=2), attempts=1)
    pages = {"/hang": Page(hangs=True), "/drip": Page(b"x" * 500, status=500, drip=0.05)}
    pages["/full"] = Page(b"x" * 1000, status=500, endless=True)
    async with open_process(impatient) as process, site(pages) as receiver, delivering(process):
        pool = process.stores.pool
        for path in pages:
            [run_id] = await ended(pool, receiver.url(path))
            [attempt] = (await until(pool, run_id, "failed")).attempts or []
            assert attempt["duration_ms"] < 10_000, path
            assert attempt["status_code"] == (None if path == "/hang" else 500)
        assert receiver.sent < 2_000_000


async def test_one_receiver_that_hangs_holds_up_no_other_of_two_hundred(settings: Settings) -> None:
    patient = hooked(settings, timeout=timedelta(seconds=30))
    pages = {"/hook": OK, "/hang": Page(hangs=True)}
    async with open_process(patient) as process, site(pages) as good, site(pages) as hanging:
        pool = process.stores.pool
        place = await make_place(pool)
        stuck = await ended(pool, hanging.url("/hang"), place, count=50)
        others = await ended(pool, good.url("/hook"), await make_place(pool), count=75)
        others += await ended(pool, good.url("/hook"), place, count=75)
        async with delivering(process):
            await eventually(lambda: len(good.asked) == len(others), says="the others had to wait")
            states = "SELECT state, count(*) FROM webhook_deliveries GROUP BY state"

            async def all_told() -> bool:
                return {row[0]: row[1] for row in await pool.fetch(states)} == {
                    "delivered": len(others),
                    "pending": len(stuck),
                }

            await eventually(all_told)
            assert len(hanging.asked) == QUICK.parallel_per_receiver
    assert len({asked.headers["webhook-id"] for asked in good.asked}) == len(others)


async def test_one_account_takes_only_its_share(settings: Settings) -> None:
    narrow = hooked(
        settings, timeout=timedelta(seconds=30), parallel=8, parallel_per_account=3, parallel_per_receiver=2
    )
    pages = {"/hook": OK, "/hang": Page(hangs=True)}
    async with open_process(narrow) as process, site(pages) as one, site(pages) as two, site(pages) as three:
        pool = process.stores.pool
        greedy = await make_place(pool)
        for receiver in (one, two, three):
            await ended(pool, receiver.url("/hang"), greedy, count=20)
        async with delivering(process):
            await eventually(lambda: sum(len(each.asked) for each in (one, two, three)) == 3)
            [other] = await ended(pool, one.url("/hook"))
            await until(pool, other, "delivered")
            hanging = [path for each in (one, two, three) for path in each.paths if path == "/hang"]
            assert len(hanging) == 3
            assert max(each.paths.count("/hang") for each in (one, two, three)) <= 2


async def test_what_a_killed_worker_was_sending_is_sent_by_another(
    settings: Settings,
) -> None:
    pages = {"/hook": Page(hangs=True)}
    async with site(pages) as receiver:
        async with open_process(hooked(settings, timeout=timedelta(seconds=2))) as killed:
            [run_id] = await ended(killed.stores.pool, receiver.url("/hook"))
            sender = Deliveries(killed)
            await sender.deliver_due()
            await eventually(lambda: len(receiver.asked) == 1)
        receiver.pages["/hook"] = OK
        async with open_process(settings) as second, delivering(second):
            told_of = await until(second.stores.pool, run_id, "delivered")
    assert {asked.headers["webhook-id"] for asked in receiver.asked} == {f"run_{run_id}"}
    lost, kept = told_of.attempts or []
    assert (lost["number"], lost["error"], lost.get("status_code")) == (1, claims.LOST, None)
    assert (kept["number"], kept["status_code"]) == (2, 200)


async def test_a_delivery_whose_last_attempt_was_lost_is_over(process: Process, settings: Settings) -> None:
    pool = process.stores.pool
    [run_id] = await ended(pool, "http://127.0.0.1:9/")
    await deliveries.note_ended(pool, 10)
    await pool.execute("UPDATE webhook_deliveries SET attempt = $1", settings.webhooks.attempts)
    await Deliveries(process).deliver_due()
    assert (await standing(pool, run_id)).shown == "pending"
    await sweeper.end_deliveries(process.stores)
    assert (await standing(pool, run_id)).shown == "failed"


async def test_of_two_workers_one_sends_a_delivery(process: Process, second: Process) -> None:
    pool = process.stores.pool
    async with site({"/hook": OK}) as receiver:
        run_ids = await ended(pool, receiver.url("/hook"), count=40)
        async with delivering(process), delivering(second):
            for run_id in run_ids:
                await until(pool, run_id, "delivered")
    assert len(receiver.asked) == len(run_ids)


async def test_the_outcome_of_a_claim_that_counts_as_lost_is_not_written(process: Process) -> None:
    pool = process.stores.pool
    [run_id] = await ended(pool, "http://127.0.0.1:9/")
    sender = Deliveries(process)
    await deliveries.note_ended(pool, 10)
    [claimed] = await sender.claim()
    await pool.execute("UPDATE webhook_deliveries SET due_at = now()")
    [again] = await sender.claim()
    assert again.attempt == claimed.attempt + 1
    await sender.write(sending.judged(QUICK, claimed, sending.Answer(200), 0.1))
    assert (await standing(pool, run_id)).shown == "pending"
    await sender.write(sending.judged(QUICK, again, sending.Answer(200), 0.1))
    assert (await standing(pool, run_id)).shown == "delivered"


async def test_after_a_rotation_both_secrets_sign_for_a_while_then_the_new_one_alone(
    process: Process, settings: Settings
) -> None:
    pool, secrets = process.stores.pool, Secrets.of(settings.secrets)
    place = await make_place(pool)
    async with site({"/hook": OK}) as receiver, delivering(process):
        [first] = await ended(pool, receiver.url("/hook"), place)
        await until(pool, first, "delivered")
        [old] = await keys_of(pool, settings, first)
        async with transaction(pool) as conn:
            await account_secrets.rotate(conn, secrets, place.account_id, timedelta(hours=1))
        new, same = await keys_of(pool, settings, first)
        assert same == old
        [run_id] = await ended(pool, receiver.url("/hook"), place)
        await until(pool, run_id, "delivered")
        verified(receiver.asked[-1], old, new)
        await pool.execute("UPDATE account_webhook_secrets SET previous_until = now()")
        [run_id] = await ended(pool, receiver.url("/hook"), place)
        await until(pool, run_id, "delivered")
        verified(receiver.asked[-1], new)
        with pytest.raises(BadSignature):
            verified(receiver.asked[-1], old)


async def test_a_delivery_whose_secret_no_key_opens_says_so_and_waits_for_the_key(process: Process) -> None:
    pool = process.stores.pool
    place = await make_place(pool)
    await pool.execute("INSERT INTO account_webhook_secrets (account_id, secret) VALUES ($1, 'junk')", place.account_id)
    async with site({"/hook": OK}) as receiver:
        [run_id] = await ended(pool, receiver.url("/hook"), place)
        await Deliveries(process).deliver_due()

        async def attempted() -> bool:
            attempts = (await standing(pool, run_id)).attempts
            return bool(attempts and attempts[0]["error"] == loop.SEALED)

        await eventually(attempted)
        await pool.execute("DELETE FROM account_webhook_secrets")
        async with delivering(process):
            await until(pool, run_id, "delivered")


async def test_deliveries_that_are_long_over_are_forgotten_in_batches(process: Process, settings: Settings) -> None:
    pool = process.stores.pool
    async with site({"/hook": OK}) as receiver, delivering(process):
        run_ids = await ended(pool, receiver.url("/hook"), count=5)
        for run_id in run_ids:
            await until(pool, run_id, "delivered")
    old = settings.webhooks.keep + timedelta(minutes=1)
    await pool.execute(
        "UPDATE webhook_deliveries SET ended_at = now() - $1::interval WHERE agent_run_id <> $2", old, run_ids[0]
    )
    assert await deliveries.forget_old(pool, settings.webhooks.keep, 3) == 3
    assert await deliveries.forget_old(pool, settings.webhooks.keep, 3) == 1
    assert (await standing(pool, run_ids[0])).shown == "delivered"
    assert (await standing(pool, run_ids[1])).shown == "forgotten"
    await deliveries.note_ended(pool, 100)
    assert await pool.fetchval("SELECT count(*) FROM webhook_deliveries") == 1


def test_delays_grow_to_the_longest_and_a_receiver_may_ask_for_more_up_to_that() -> None:
    usual = WebhookSettings()
    for attempt, seconds in ((1, 5), (2, 15), (3, 45), (9, 21600), (50, 21600)):
        for _ in range(20):
            assert 0.8 * seconds <= sending.delay(usual, attempt).total_seconds() <= 1.2 * seconds
    assert sending.delay(usual, 1, 600).total_seconds() == 600
    assert sending.delay(usual, 1, 10**9).total_seconds() == 21600
    assert sending.delay(usual, 5, 1).total_seconds() > 300


async def test_an_answer_that_asks_for_patience_is_given_it(process: Process) -> None:
    pool = process.stores.pool
    await ended(pool, "http://127.0.0.1:9/")
    await deliveries.note_ended(pool, 10)
    [claimed] = await Deliveries(process).claim()
    patient = QUICK.model_copy(update={"max_delay": timedelta(hours=1)})
    busy = sending.judged(patient, claimed, sending.Answer(503, "Busy.", retry_after=120), 0.1)
    assert (busy.state, busy.again) == ("pending", timedelta(seconds=120))
    last = sending.judged(patient, replace(claimed, attempt=4), sending.Answer(503, "Busy.", retry_after=120), 0.1)
    assert (last.state, last.again) == ("failed", None)


async def test_a_worker_that_leaves_begins_nothing(process: Process) -> None:
    pool = process.stores.pool
    async with site({"/hook": OK}) as receiver:
        process.leaving.set()
        async with delivering(process):
            [run_id] = await ended(pool, receiver.url("/hook"))
            await asyncio.sleep(0.3)
        assert not receiver.asked
        assert (await standing(pool, run_id)).shown == "pending"


def test_retry_after_is_read_in_seconds_or_as_a_date() -> None:
    assert sending.seconds_of("120") == 120
    soon = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert 200 < (sending.seconds_of(soon) or 0) <= 300
    assert sending.seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for junk in (None, "", "soon", "-5", "1.5", "9" * 100 + "x", "Wed, 99 Oct 2015 07:28:00 GMT"):
        assert sending.seconds_of(junk) is None, junk

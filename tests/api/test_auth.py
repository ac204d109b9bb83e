from datetime import UTC, datetime, timedelta
from uuid import uuid4

import jwt
import pytest

from api.auth import SeenUsers
from services.postgres import Pool
from services.settings import Settings
from services.tokens import sign_access_token
from tests.api.conftest import Person

HOUR = timedelta(hours=1)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def claims(**changes: object) -> dict[str, object]:
    return {"sub": str(uuid4()), "aud": "authenticated", "exp": datetime.now(UTC) + HOUR, **changes}


async def test_a_signed_token_opens_the_door(ann: Person) -> None:
    assert (await ann.get("/threads")).status_code == 200


async def test_without_a_token_the_answer_says_how_to_sign_in(nobody: Person) -> None:
    answer = await nobody.get("/threads")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json() == {"detail": "Not authenticated."}


@pytest.mark.parametrize(
    "forge",
    [
        lambda secret: jwt.encode(claims(), "another-secret-of-thirty-two-bytes-or-more", algorithm="HS256"),
        lambda secret: jwt.encode(claims(), "", algorithm="none"),
        lambda secret: jwt.encode(claims(), secret * 2, algorithm="HS512"),
        lambda secret: jwt.encode(claims(exp=datetime.now(UTC) - HOUR), secret, algorithm="HS256"),
        lambda secret: jwt.encode(claims(aud="stream"), secret, algorithm="HS256"),
        lambda secret: jwt.encode(claims(sub="root"), secret, algorithm="HS256"),
        lambda secret: jwt.encode({"sub": str(uuid4()), "aud": "authenticated"}, secret, algorithm="HS256"),
        lambda secret: jwt.encode(claims(), secret, algorithm="HS256")[:-4] + "AAAA",
        lambda secret: "not-a-token",
    ],
    ids=[
        "other secret",
        "alg none",
        "other algorithm",
        "expired",
        "other audience",
        "no uuid",
        "no expiry",
        "cut",
        "junk",
    ],
)
async def test_a_token_that_does_not_hold_is_refused(nobody: Person, settings: Settings, forge) -> None:  # type: ignore[no-untyped-def]
    answer = await nobody.get("/threads", headers=bearer(forge(settings.auth.secret.get_secret_value())))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_an_api_key_is_not_enough_yet(nobody: Person) -> None:
    assert (await nobody.get("/threads", headers={"X-API-Key": "pk_a:sk_b"})).status_code == 401


async def test_a_token_in_the_query_opens_no_ordinary_route(nobody: Person, settings: Settings) -> None:
    token = sign_access_token(settings.auth.secret.get_secret_value(), uuid4(), lifetime=HOUR)
    assert (await nobody.get("/threads", params={"token": token})).status_code == 401


async def test_the_token_is_judged_before_anything_else(nobody: Person) -> None:
    answer = await nobody.get("/threads/not-a-uuid?limit=x", headers={"X-Account-Id": "not-a-uuid"})
    assert answer.status_code == 401


async def test_the_personal_account_is_made_on_first_sight(ann: Person, pool: Pool) -> None:
    await ann.get("/threads")
    assert await pool.fetchval("SELECT role FROM account_members WHERE user_id = $1", ann.user_id) == "owner"


async def test_a_member_works_in_the_account_that_the_header_names(ann: Person, bob: Person, pool: Pool) -> None:
    thread_id, _ = await ann.make_thread()
    await bob.get("/threads")
    await pool.execute("INSERT INTO account_members VALUES ($1, $2, 'member')", ann.user_id, bob.user_id)
    as_ann = {"X-Account-Id": str(ann.user_id)}
    assert (await bob.get(f"/threads/{thread_id}")).status_code == 404
    assert (await bob.get(f"/threads/{thread_id}", headers=as_ann)).status_code == 200


async def test_somebody_elses_account_and_one_that_is_not_there_are_refused_alike(ann: Person, bob: Person) -> None:
    await ann.get("/threads")
    answers = [await bob.get("/threads", headers={"X-Account-Id": str(it)}) for it in (ann.user_id, uuid4())]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].content == answers[1].content


async def test_a_malformed_account_header_is_named(ann: Person) -> None:
    answer = await ann.get("/threads", headers={"X-Account-Id": "mine"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "X-Account-Id"]


def test_seen_users_are_bounded_and_keep_the_latest() -> None:
    seen, users = SeenUsers(size=2), [uuid4() for _ in range(3)]
    seen.add(users[0])
    seen.add(users[1])
    assert users[0] in seen
    seen.add(users[2])
    assert [user in seen for user in users] == [True, False, True]

from base64 import urlsafe_b64encode
from datetime import timedelta
from time import time
from uuid import UUID, uuid4

import jwt
import pytest
from pydantic import SecretStr, ValidationError

from services.errors import Unauthenticated
from services.settings import AuthSettings
from services.tokens import AccessTokens, sign_access_token
from tests.issuer import claims

SECRET = "a-secret-for-these-tests-of-32-bytes-or-more"
NEXT_SECRET = "the-next-secret-of-these-tests-of-32-bytes"
AUTH = AuthSettings(secret=SecretStr(SECRET))
HOUR = timedelta(hours=1)


async def user_of(token: str, settings: AuthSettings = AUTH) -> UUID:
    return await AccessTokens(settings).user_of(token)


async def test_a_signed_token_says_who_it_is() -> None:
    user_id = uuid4()
    assert await user_of(sign_access_token(SECRET, user_id, lifetime=HOUR)) == user_id


async def test_a_token_of_supabase_works_as_it_comes() -> None:
    user_id = uuid4()
    token = jwt.encode(claims(sub=str(user_id)), SECRET, algorithm="HS256", headers={"kid": "abc/legacy"})
    assert await user_of(token) == user_id


async def test_an_expired_token_says_so() -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        await user_of(sign_access_token(SECRET, uuid4(), lifetime=-HOUR))


async def test_the_clocks_of_two_machines_may_differ_a_little() -> None:
    await user_of(sign_access_token(SECRET, uuid4(), lifetime=-AUTH.leeway / 2))


def headed(header: bytes) -> str:
    return f"{urlsafe_b64encode(header).decode().rstrip('=')}.e30.AAAA"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "ä",
        "\x00",
        headed(b"[]"),
        headed(b"null"),
        headed(b'{"alg": 1}'),
        headed(b'{"alg": ["HS256"]}'),
        headed(b'{"alg": "HS256", "kid": {}}'),
        headed(b'{"alg": "HS256", "crit": ["x"]}'),
        headed(b'{"alg": "HS256", "x": ' + b"[" * 1000 + b"]" * 1000 + b"}"),
    ],
)
async def test_junk_is_not_valid(token: str) -> None:
    with pytest.raises(Unauthenticated, match="not valid"):
        await user_of(token)


async def test_a_token_of_any_size_but_a_huge_one_is_read() -> None:
    large, huge = (jwt.encode(claims(note="x" * size), SECRET, algorithm="HS256") for size in (8_000, 20_000))
    await user_of(large)
    with pytest.raises(Unauthenticated, match="too long"):
        await user_of(huge)


async def test_another_audience_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        await user_of(sign_access_token(SECRET, uuid4(), lifetime=HOUR, audience="stream"))


async def test_an_issuer_counts_once_it_is_set() -> None:
    strict = AuthSettings(secret=SecretStr(SECRET), issuer="https://issuer.example")
    with pytest.raises(Unauthenticated):
        await user_of(sign_access_token(SECRET, uuid4(), lifetime=HOUR), strict)


async def test_a_token_that_is_not_good_yet_is_refused() -> None:
    later = claims()["exp"] - timedelta(minutes=30)
    with pytest.raises(Unauthenticated):
        await user_of(jwt.encode(claims(nbf=later), SECRET, algorithm="HS256"))


async def test_a_new_secret_signs_while_the_one_before_still_verifies() -> None:
    user_id, old = uuid4(), sign_access_token(SECRET, uuid4(), lifetime=HOUR)
    rotated = AuthSettings(secret=SecretStr(NEXT_SECRET), previous_secrets=SecretStr(f" {SECRET} ,"))
    await user_of(old, rotated)
    assert await user_of(sign_access_token(rotated.secrets[0], user_id, lifetime=HOUR), rotated) == user_id
    with pytest.raises(Unauthenticated):
        await user_of(old, AuthSettings(secret=SecretStr(NEXT_SECRET)))


async def test_a_token_that_held_is_known_for_a_minute_but_never_beyond_its_end() -> None:
    now = time()
    tokens = AccessTokens(AUTH, clock=lambda: now)
    long, short = (sign_access_token(SECRET, uuid4(), lifetime=timedelta(seconds=each)) for each in (3600, 20))
    users = [await tokens.user_of(long), await tokens.user_of(short)]
    tokens.settings = AuthSettings(secret=SecretStr(NEXT_SECRET))  # neither would hold again
    now += 15
    assert [await tokens.user_of(long), await tokens.user_of(short)] == users
    now += 6
    assert await tokens.user_of(long) == users[0]
    with pytest.raises(Unauthenticated):
        await tokens.user_of(short)
    now += 40
    with pytest.raises(Unauthenticated):
        await tokens.user_of(long)


async def test_the_tokens_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.tokens.MAX_KNOWN", 2)
    tokens = AccessTokens(AUTH)
    for _ in range(4):
        await tokens.user_of(sign_access_token(SECRET, uuid4(), lifetime=HOUR))
    assert len(tokens.verified) == 2


@pytest.mark.parametrize("url", ["", "https://issuer.example/jwks"])
def test_algorithms_and_the_place_of_their_keys_are_set_together(url: str) -> None:
    algorithms = ("HS256",) if url else ("HS256", "ES256")
    with pytest.raises(ValidationError, match="JWT_JWKS_URL"):
        AuthSettings.model_validate({"algorithms": algorithms, "jwks_url": url})


async def test_a_token_that_expires_after_the_end_of_time_is_none() -> None:
    token = jwt.encode({**claims(sub=str(uuid4())), "exp": 10**400}, SECRET, algorithm="HS256")
    with pytest.raises(Unauthenticated, match="not valid"):
        await user_of(token)

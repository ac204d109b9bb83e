from datetime import timedelta
from uuid import uuid4

import jwt
import pytest
from pydantic import SecretStr

from services import stream_tokens
from services.errors import Unauthenticated
from services.settings import AuthSettings, Settings, StreamSettings
from services.stream_tokens import StreamPass
from services.tokens import AccessTokens, sign_access_token

SECRET = "a-secret-for-these-tests-of-32-bytes-or-more"
SETTINGS = Settings(auth=AuthSettings(secret=SecretStr(SECRET)))


def a_pass(*, by_key: bool = False) -> StreamPass:
    return StreamPass(uuid4(), uuid4(), uuid4(), uuid4() if by_key else None)


@pytest.mark.parametrize("by_key", [False, True])
def test_a_stream_token_says_whom_it_admits_where(by_key: bool) -> None:
    admitted = a_pass(by_key=by_key)
    assert stream_tokens.read(SETTINGS, stream_tokens.sign(SETTINGS, admitted)) == admitted


def test_it_lasts_a_quarter_of_an_hour_and_then_says_that_it_is_over() -> None:
    token = stream_tokens.sign(SETTINGS, a_pass())
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["aud"] == "stream"
    assert SETTINGS.streams.token_lifetime == timedelta(minutes=15)
    brief = SETTINGS.model_copy(
        update={"streams": StreamSettings().model_copy(update={"token_lifetime": -timedelta(1)})}
    )
    with pytest.raises(Unauthenticated, match="expired"):
        stream_tokens.read(SETTINGS, stream_tokens.sign(brief, a_pass()))


async def test_it_is_no_access_token() -> None:
    with pytest.raises(Unauthenticated):
        await AccessTokens(SETTINGS.auth).user_of(stream_tokens.sign(SETTINGS, a_pass()))


def test_nobody_who_signs_access_tokens_can_make_one() -> None:
    claims = jwt.decode(stream_tokens.sign(SETTINGS, a_pass()), options={"verify_signature": False})
    assert stream_tokens.read(SETTINGS, jwt.encode(claims, SECRET, algorithm="HS256")) is None


@pytest.mark.parametrize(
    "token", ["", "a.b.c", "ä", "x" * 20_000, sign_access_token(SECRET, uuid4(), lifetime=timedelta(1))]
)
def test_what_is_no_stream_token_is_left_to_others(token: str) -> None:
    assert stream_tokens.read(SETTINGS, token) is None


def test_it_outlives_the_secret_that_it_was_signed_with_where_that_still_verifies() -> None:
    token = stream_tokens.sign(SETTINGS, a_pass())
    other = AuthSettings(secret=SecretStr("another-secret-of-these-tests-of-32-bytes"))
    assert stream_tokens.read(Settings(auth=other), token) is None
    rotated = other.model_copy(update={"previous_secrets": SecretStr(SECRET)})
    assert stream_tokens.read(Settings(auth=rotated), token)

from datetime import timedelta
from uuid import uuid4

import pytest
from pydantic import SecretStr

from services.errors import Unauthenticated
from services.settings import AuthSettings
from services.tokens import sign_access_token, verify_access_token

SECRET = "a-secret-for-these-tests-of-32-bytes-or-more"
AUTH = AuthSettings(secret=SecretStr(SECRET))
HOUR = timedelta(hours=1)


def test_a_signed_token_says_who_it_is() -> None:
    user_id = uuid4()
    assert verify_access_token(AUTH, sign_access_token(SECRET, user_id, lifetime=HOUR)) == user_id


def test_an_expired_token_says_so() -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        verify_access_token(AUTH, sign_access_token(SECRET, uuid4(), lifetime=-HOUR))


def test_the_clocks_of_two_machines_may_differ_a_little() -> None:
    token = sign_access_token(SECRET, uuid4(), lifetime=-AUTH.leeway / 2)
    verify_access_token(AUTH, token)


@pytest.mark.parametrize("token", ["", "a.b.c", "ä", "\x00"])
def test_junk_is_not_valid(token: str) -> None:
    with pytest.raises(Unauthenticated, match="not valid"):
        verify_access_token(AUTH, token)


def test_another_audience_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        verify_access_token(AUTH, sign_access_token(SECRET, uuid4(), lifetime=HOUR, audience="stream"))


def test_an_issuer_counts_once_it_is_set() -> None:
    strict = AuthSettings(secret=SecretStr(SECRET), issuer="https://issuer.example")
    with pytest.raises(Unauthenticated):
        verify_access_token(strict, sign_access_token(SECRET, uuid4(), lifetime=HOUR))

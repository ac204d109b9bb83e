import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import jwt
import orjson
import pytest
from httpx2 import AsyncClient

from services.errors import Unauthenticated, Unavailable
from services.jwks import MAX_BYTES, BadKeySet, KeySet, read_keys
from services.settings import AuthSettings
from services.tokens import AccessTokens
from tests.issuer import Issuer, claims, ec_signer, rsa_signer
from tests.waiting import eventually

SECRET = "a-secret-for-these-tests-of-32-bytes-or-more"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer([rsa_signer(), ec_signer()]) as issuer:
        yield issuer


@pytest.fixture
async def http() -> AsyncIterator[AsyncClient]:
    async with AsyncClient() as client:
        yield client


@pytest.fixture
async def tokens(issuer: Issuer, http: AsyncClient, clock: Clock) -> AsyncIterator[AccessTokens]:
    tokens = tokens_of(issuer.settings(), http, clock)
    yield tokens
    assert tokens.key_set
    await tokens.key_set.close()


def tokens_of(settings: AuthSettings, http: AsyncClient, clock: Clock) -> AccessTokens:
    return AccessTokens(settings, KeySet(settings, http, clock))


@pytest.mark.parametrize("signer", [rsa_signer(), ec_signer()], ids=["RS256", "ES256"])
async def test_a_token_of_the_issuers_key_says_who_it_is(tokens: AccessTokens, signer) -> None:  # type: ignore[no-untyped-def]
    user_id = uuid4()
    assert await tokens.user_of(signer.sign(sub=str(user_id))) == user_id


async def test_many_tokens_at_once_cost_one_fetch(tokens: AccessTokens, issuer: Issuer) -> None:
    issuer.hold = threading.Event()
    asking = [asyncio.create_task(tokens.user_of(ec_signer().sign())) for _ in range(50)]
    await eventually(lambda: issuer.asked)
    issuer.hold.set()
    await asyncio.gather(*asking)
    assert issuer.asked == 1


async def test_a_key_that_is_rotated_in_counts_at_once(tokens: AccessTokens, issuer: Issuer, clock: Clock) -> None:
    await tokens.user_of(ec_signer().sign())
    issuer.signers = [ec_signer("ec-2")]
    clock.now += 11
    await tokens.user_of(ec_signer("ec-2").sign())
    assert issuer.asked == 2


async def test_a_key_that_is_taken_out_counts_no_more_once_the_keys_are_fetched_again(
    tokens: AccessTokens, issuer: Issuer, clock: Clock
) -> None:
    await tokens.user_of(rsa_signer().sign())
    issuer.signers = [ec_signer()]
    clock.now += 301
    await tokens.user_of(rsa_signer().sign())  # what is known answers while it is looked at again
    await eventually(lambda: issuer.asked == 2)
    await eventually(lambda: tokens.key_set and not tokens.key_set.fetching)
    with pytest.raises(Unauthenticated):
        await tokens.user_of(rsa_signer().sign())


async def test_names_of_keys_that_are_made_up_cost_one_fetch_in_a_while(
    tokens: AccessTokens, issuer: Issuer, clock: Clock
) -> None:
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await tokens.user_of(ec_signer().sign({"kid": f"made-up-{number}"}))
    assert issuer.asked == 1
    clock.now += 11
    with pytest.raises(Unauthenticated):
        await tokens.user_of(ec_signer().sign({"kid": "made-up"}))
    assert issuer.asked == 2


async def test_known_keys_go_on_while_the_issuer_is_away_but_not_for_ever(
    tokens: AccessTokens, issuer: Issuer, clock: Clock
) -> None:
    await tokens.user_of(ec_signer().sign())
    issuer.status = 500
    clock.now += 23 * 3600
    await tokens.user_of(ec_signer().sign())
    with pytest.raises(Unavailable):
        await tokens.user_of(ec_signer("ec-2").sign())
    clock.now += 2 * 3600
    with pytest.raises(Unavailable):
        await tokens.user_of(ec_signer().sign())
    issuer.status = 200
    clock.now += 11
    await tokens.user_of(ec_signer().sign())


async def test_an_issuer_that_hangs_is_given_up(issuer: Issuer, http: AsyncClient, clock: Clock) -> None:
    issuer.hold = threading.Event()
    tokens = tokens_of(issuer.settings(jwks_timeout="50ms"), http, clock)
    with pytest.raises(Unavailable):
        await tokens.user_of(ec_signer().sign())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": []}', b'{"keys": [1, {}]}', b" " * (MAX_BYTES + 1)]
)
async def test_an_issuer_that_answers_nonsense_is_as_one_that_is_away(
    tokens: AccessTokens, issuer: Issuer, body: bytes
) -> None:
    issuer.body = body
    with pytest.raises(Unavailable):
        await tokens.user_of(ec_signer().sign())


async def test_a_token_without_a_key_id_takes_the_only_key_of_its_algorithm(
    tokens: AccessTokens, issuer: Issuer, clock: Clock
) -> None:
    def nameless() -> str:
        return jwt.encode(claims(), ec_signer().private, algorithm="ES256")

    await tokens.user_of(nameless())
    issuer.signers.append(ec_signer("ec-2"))
    clock.now += 301
    await tokens.user_of(nameless())
    await eventually(lambda: tokens.key_set and len(tokens.key_set.keys) == 3)
    with pytest.raises(Unauthenticated):
        await tokens.user_of(nameless())


def test_weak_foreign_and_symmetric_keys_are_passed_over() -> None:
    good = ec_signer().shown
    unfit = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "RS256"},
        rsa_signer("weak", 1024).shown,
        {**rsa_signer().shown, "alg": "RS512"},
        {**rsa_signer().shown, "use": "enc"},
        {**good, "crv": "P-384"},
        {**good, "x": "AAAA"},
        {**good, "kid": ["ec-1"]},
        {"kty": "RSA"},
    ]
    (kept,) = read_keys(orjson.dumps({"keys": [*unfit, good]}))
    assert (kept.key_id, kept.algorithm) == ("ec-1", "ES256")
    with pytest.raises(BadKeySet):
        read_keys(orjson.dumps({"keys": unfit}))


def forged(kind: str) -> str:
    rsa_key, ec_key = rsa_signer(), ec_signer()
    raw = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    if kind == "alg none":
        return jwt.encode(claims(), "", algorithm="none", headers={"kid": "rsa-1"})
    if kind == "HS256 with the public key":
        parts = jwt.encode(claims(), "k" * 32, algorithm="HS256", headers={"kid": "rsa-1"}).rsplit(".", 1)[0]
        signature = raw.sign(parts.encode(), rsa_key.public_pem)
        return f"{parts}.{jwt.utils.base64url_encode(signature).decode()}"
    if kind == "other issuer":
        return rsa_key.sign(iss="https://elsewhere.example")
    if kind == "other audience":
        return rsa_key.sign(aud="stream")
    if kind == "the id of another key":
        return ec_key.sign({"kid": "rsa-1"})
    if kind == "a key of its own":
        return ec_signer("impostor").sign({"kid": "ec-1", "jwk": ec_signer("impostor").shown})
    if kind == "keys of another place":
        return ec_signer("impostor").sign({"jku": "http://127.0.0.1:9/jwks.json"})
    return rsa_key.sign({"kid": kind})


FORGERIES = [
    "alg none",
    "HS256 with the public key",
    "other issuer",
    "other audience",
    "the id of another key",
    "a key of its own",
    "keys of another place",
    "../../../../dev/null",
    "/etc/passwd",
    "rsa-1' OR '1'='1",
    "http://127.0.0.1:9/key",
    "",
]


@pytest.mark.parametrize("algorithms", [("RS256", "ES256"), ("HS256", "RS256", "ES256")], ids=["public", "both"])
@pytest.mark.parametrize("kind", FORGERIES)
async def test_a_forged_token_is_refused(
    issuer: Issuer, http: AsyncClient, clock: Clock, kind: str, algorithms: tuple[str, ...]
) -> None:
    tokens = tokens_of(issuer.settings(algorithms=algorithms, secret=SECRET), http, clock)
    with pytest.raises(Unauthenticated, match="not valid"):
        await tokens.user_of(forged(kind))
    assert isinstance(await tokens.user_of(rsa_signer().sign()), UUID)


async def test_a_secret_does_not_count_where_only_public_keys_are_configured(tokens: AccessTokens) -> None:
    signed = jwt.encode(claims(), tokens.settings.secrets[0], algorithm="HS256")
    with pytest.raises(Unauthenticated):
        await tokens.user_of(signed)

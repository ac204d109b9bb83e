"""The public keys of the tokens' issuer (JWKS): fetched, kept, and looked at again when a token names another one."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx2
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.background import stop
from services.errors import Unavailable
from services.log import logger
from services.outgoing import BodyTooLarge, read_bounded
from services.settings import AuthSettings

PublicKey = RSAPublicKey | EllipticCurvePublicKey

ALGORITHM_OF_TYPE = {"RSA": "RS256", "EC": "ES256"}
CURVE = "P-256"
SHORTEST_RSA_BITS = 2048
MAX_BYTES = 256 * 1024
MAX_KEYS = 100
AWAY = "The keys that tokens are verified with cannot be fetched right now; try again shortly."


class BadKeySet(Exception):
    """What the issuer answered is no set of keys that we can use."""


@dataclass(frozen=True, slots=True)
class IssuersKey:
    """A key is good for one algorithm: which one it itself says, never a token."""

    key_id: str | None
    algorithm: str
    key: PublicKey


class KeySet:
    """One fetch at a time, and no two within the cooldown; while the issuer is away, what is known goes on."""

    def __init__(
        self, settings: AuthSettings, client: httpx2.AsyncClient, clock: Callable[[], float] = monotonic
    ) -> None:
        self.settings, self.client, self.clock = settings, client, clock
        self.keys: list[IssuersKey] = []
        self.fetched_at = self.tried_at = -float("inf")
        self.fetching: asyncio.Task[None] | None = None

    async def close(self) -> None:
        await stop([self.fetching] if self.fetching else [])

    async def find(self, algorithm: str, key_id: str | None) -> PublicKey | None:
        """The key of that id, for that algorithm; of the only one there is when a token names none.

        Raises: Unavailable when it is not known and the keys cannot be fetched.
        """
        known = self.known(algorithm, key_id)
        if self.clock() - self.fetched_at > self.settings.jwks_refresh.total_seconds() or known is None:
            self.fetch_soon()
        if known is None and self.fetching:
            await asyncio.shield(self.fetching)
            known = self.known(algorithm, key_id)
        if known is None and self.fetched_at < self.tried_at:
            raise Unavailable(AWAY)
        return known

    def known(self, algorithm: str, key_id: str | None) -> PublicKey | None:
        if self.clock() - self.fetched_at > self.settings.jwks_max_age.total_seconds():
            return None
        fitting = [each for each in self.keys if each.algorithm == algorithm]
        if key_id is None:
            return fitting[0].key if len(fitting) == 1 else None
        return next((each.key for each in fitting if each.key_id == key_id), None)

    def fetch_soon(self) -> None:
        if self.fetching or self.clock() - self.tried_at < self.settings.jwks_cooldown.total_seconds():
            return
        self.tried_at = self.clock()
        self.fetching = asyncio.create_task(self.fetch(), name="jwks")

    async def fetch(self) -> None:
        try:
            async with asyncio.timeout(self.settings.jwks_timeout.total_seconds()):
                self.keys = read_keys(await self.download())
            self.fetched_at = self.tried_at
        except (httpx2.HTTPError, BodyTooLarge, BadKeySet, OSError) as error:
            logger.warning("jwks.fetch_failed", url=self.settings.jwks_url, error=repr(error))
        finally:
            self.fetching = None

    async def download(self) -> bytes:
        async with self.client.stream("GET", self.settings.jwks_url, follow_redirects=False) as response:
            if response.status_code != httpx2.codes.OK:
                raise BadKeySet(f"The issuer answered {response.status_code}.")
            return await read_bounded(response, MAX_BYTES)


def read_keys(body: bytes) -> list[IssuersKey]:
    """The keys of a JWKS document that sign with RS256 or ES256; others in it are passed over.

    Raises: BadKeySet when there is none.
    """
    try:
        entries = orjson.loads(body)["keys"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise BadKeySet("The issuer answered no set of keys.") from error
    keys = list(usable(entries[:MAX_KEYS])) if isinstance(entries, list) else []
    if not keys:
        raise BadKeySet("None of the issuer's keys can be used.")
    return keys


def usable(entries: Iterable[Any]) -> Iterable[IssuersKey]:
    for entry in entries:
        algorithm = algorithm_of(entry)
        if algorithm is None:
            continue
        try:
            key = jwt.PyJWK(entry, algorithm).key
        except (jwt.PyJWKError, jwt.InvalidKeyError, ValueError, TypeError):
            continue
        if is_strong(key):
            yield IssuersKey(entry.get("kid"), algorithm, key)


def algorithm_of(entry: Any) -> str | None:
    """What a key is for, or None when it does not sign tokens as we take them; a symmetric one never does."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str | None):
        return None
    algorithm = ALGORITHM_OF_TYPE.get(str(entry.get("kty")))
    if entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    return algorithm if algorithm != "ES256" or entry.get("crv") == CURVE else None


def is_strong(key: Any) -> bool:
    if isinstance(key, RSAPublicKey):
        return key.key_size >= SHORTEST_RSA_BITS
    return isinstance(key, EllipticCurvePublicKey)

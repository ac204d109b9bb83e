"""Signed access tokens: who the caller is."""

import binascii
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from time import time
from typing import Any
from uuid import UUID

import jwt
import orjson

from services.errors import Unauthenticated
from services.jwks import KeySet, PublicKey
from services.settings import AuthSettings

MAX_TOKEN_CHARS = 16 * 1024
MAX_KNOWN = 10_000
KNOWN_SECONDS = 60.0
REQUIRED = ["exp", "sub", "aud"]
INVALID = "The token is not valid."


def sign_access_token(secret: str, user_id: UUID, *, lifetime: timedelta, audience: str = "authenticated") -> str:
    """An HS256 token for `user_id` in the shape Supabase gives out: sub, aud, role, iat, exp."""
    now = datetime.now(UTC)
    claims = {"sub": str(user_id), "aud": audience, "role": audience, "iat": now, "exp": now + lifetime}
    return jwt.encode(claims, secret, algorithm="HS256")


@dataclass(frozen=True, slots=True)
class Claims:
    user_id: UUID
    expires_at: float


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that held a moment ago: looking that up costs 2 µs, verifying it again 80 (HS256) to 150 (ES256)."""

    user_id: UUID
    until: float


class AccessTokens:
    """Judges access tokens: which algorithms and keys count is configured, a token only chooses among them."""

    def __init__(
        self, settings: AuthSettings, key_set: KeySet | None = None, clock: Callable[[], float] = time
    ) -> None:
        self.settings, self.key_set, self.clock = settings, key_set, clock
        self.verified: OrderedDict[bytes, Verified] = OrderedDict()

    async def user_of(self, token: str) -> UUID:
        """The user of a token whose signature, expiry, audience and (when set) issuer hold.

        Raises: Unauthenticated, never saying which check failed beyond expiry; Unavailable while the issuer's keys
        cannot be fetched and none that is known is the token's.
        """
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated("The token is too long.")
        name = sha256(token.encode(errors="replace")).digest()
        known = self.verified.get(name)
        if known and self.clock() < known.until:
            return known.user_id
        claims = await self.verify(token)
        self.keep(name, claims)
        return claims.user_id

    async def verify(self, token: str) -> Claims:
        algorithm, key_id = named_key(token)
        if algorithm not in self.settings.algorithms:
            raise Unauthenticated(INVALID)
        keys = self.settings.secrets if algorithm == "HS256" else await self.issuers_keys(algorithm, key_id)
        claims = self.claims_of(token, algorithm, keys)
        try:
            return Claims(UUID(claims["sub"]), float(claims["exp"]))
        except (ValueError, OverflowError) as error:
            raise Unauthenticated(INVALID) from error

    def keep(self, name: bytes, claims: Claims) -> None:
        """A minute is short beside how long a key that was withdrawn still counts (JWT_JWKS_REFRESH)."""
        until = min(self.clock() + KNOWN_SECONDS, claims.expires_at)
        self.verified[name] = Verified(claims.user_id, until)
        if len(self.verified) > MAX_KNOWN:
            self.verified.popitem(last=False)

    async def issuers_keys(self, algorithm: str, key_id: str | None) -> list[PublicKey]:
        assert self.key_set
        key = await self.key_set.find(algorithm, key_id)
        return [key] if key else []

    def claims_of(self, token: str, algorithm: str, keys: Sequence[str | PublicKey]) -> dict[str, Any]:
        for key in keys:
            try:
                return self.claims_under(token, algorithm, key)
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError as error:
                raise Unauthenticated("The token has expired.") from error
            except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError) as error:
                raise Unauthenticated(INVALID) from error
        raise Unauthenticated(INVALID)

    def claims_under(self, token: str, algorithm: str, key: str | PublicKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self.settings.audience,
            issuer=self.settings.issuer or None,
            leeway=self.settings.leeway,
            options={"require": REQUIRED},
        )


def named_key(token: str) -> tuple[str, str | None]:
    """Algorithm and key id of a token's header, unverified: they only choose among what is configured.

    Raises: Unauthenticated when there is no such header.
    """
    segment = token.partition(".")[0]
    try:
        header = orjson.loads(urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
        algorithm, key_id = header["alg"], header.get("kid")
    except (ValueError, binascii.Error, TypeError, KeyError, AttributeError) as error:
        raise Unauthenticated(INVALID) from error
    if not isinstance(algorithm, str) or not isinstance(key_id, str | None):
        raise Unauthenticated(INVALID)
    return algorithm, key_id

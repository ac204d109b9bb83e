"""Tokens that open the stream of one run and nothing else: an EventSource cannot send headers."""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import jwt

from services.errors import Unauthenticated
from services.settings import Settings
from services.tokens import INVALID, MAX_TOKEN_CHARS

AUDIENCE = "stream"
PURPOSE = b"longrun stream"
REQUIRED = ["exp", "sub", "aud", "account", "run"]


@dataclass(frozen=True, slots=True)
class StreamPass:
    """Who may read the stream of a run, and for which account; with the API key that stands for the person."""

    run_id: UUID
    account_id: UUID
    user_id: UUID
    key_id: UUID | None = None


def sign(settings: Settings, admitted: StreamPass) -> str:
    """A token that says what the pass says, for STREAM_TOKEN_LIFETIME."""
    claims = {
        "sub": str(admitted.user_id),
        "aud": AUDIENCE,
        "account": str(admitted.account_id),
        "run": str(admitted.run_id),
        "exp": datetime.now(UTC) + settings.streams.token_lifetime,
    }
    if admitted.key_id:
        claims["key"] = str(admitted.key_id)
    return jwt.encode(claims, signing_key(settings.auth.secrets[0]), algorithm="HS256")


def read(settings: Settings, token: str) -> StreamPass | None:
    """The pass in a token of ours; None for a token that is none of ours, which may be an access token.

    Raises: Unauthenticated when it has expired.
    """
    if len(token) > MAX_TOKEN_CHARS:
        return None
    return next((found for secret in settings.auth.secrets if (found := read_under(secret, token))), None)


def read_under(secret: str, token: str) -> StreamPass | None:
    try:
        claims = jwt.decode(
            token, signing_key(secret), algorithms=["HS256"], audience=AUDIENCE, options={"require": REQUIRED}
        )
    except jwt.ExpiredSignatureError as error:
        raise Unauthenticated("The token has expired.") from error
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        return None
    key_id = UUID(claims["key"]) if "key" in claims else None
    return StreamPass(UUID(claims["run"]), UUID(claims["account"]), UUID(claims["sub"]), key_id)


def require(found: StreamPass, run_id: UUID) -> None:
    """Raises: Unauthenticated for the stream of another run."""
    if found.run_id != run_id:
        raise Unauthenticated(INVALID)


def signing_key(secret: str) -> bytes:
    """A key of its own: no token that somebody signs with the secret itself is one of these."""
    return hmac.digest(secret.encode(), PURPOSE, "sha256")

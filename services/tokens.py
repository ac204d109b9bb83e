"""Signed access tokens: who the caller is."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import jwt

from services.errors import Unauthenticated
from services.settings import AuthSettings


def sign_access_token(secret: str, user_id: UUID, *, lifetime: timedelta, audience: str = "authenticated") -> str:
    """An HS256 token for `user_id` in the shape Supabase gives out: sub, aud, role, iat, exp."""
    now = datetime.now(UTC)
    claims = {"sub": str(user_id), "aud": audience, "role": audience, "iat": now, "exp": now + lifetime}
    return jwt.encode(claims, secret, algorithm="HS256")


def verify_access_token(settings: AuthSettings, token: str) -> UUID:
    """The user id of a token whose signature, expiry, audience and (when set) issuer hold.

    Raises: Unauthenticated, never saying which check failed beyond expiry.
    """
    try:
        claims = jwt.decode(
            token,
            settings.secret.get_secret_value(),
            algorithms=[settings.algorithm],
            audience=settings.audience,
            issuer=settings.issuer or None,
            leeway=settings.leeway,
            options={"require": ["exp", "sub", "aud"]},
        )
        return UUID(claims["sub"])
    except jwt.ExpiredSignatureError as error:
        raise Unauthenticated("The token has expired.") from error
    except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError) as error:
        raise Unauthenticated("The token is not valid.") from error

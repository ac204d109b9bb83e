"""QStash as what wakes schedules, by its SDK. Imported only where it is in use: it brings an HTTP stack of its own."""

import asyncio
import base64
import hashlib
from typing import Any
from uuid import UUID

import httpx
import jwt
import orjson
from qstash import AsyncQStash
from qstash.errors import QStashError

from services.errors import Unauthenticated
from services.schedules.store import Schedule
from services.settings import QstashSettings, Settings

RETRIES = 3
SKEW_SECONDS = 30
"""By how much its clock may be ahead of ours, as when it fires early."""
UNSIGNED = "The signature of this delivery is missing, wrong or expired."
GONE = "status: 404"
"""How the SDK's error says that there is no such schedule."""


class TellingFailed(Exception):
    """QStash could not be told; the text says why."""


class Qstash:
    """One process's client."""

    def __init__(self, settings: Settings) -> None:
        self.settings: QstashSettings = settings.qstash
        self.public_url = settings.api.public_url.rstrip("/")
        token = self.settings.token.get_secret_value().strip()
        self.client = AsyncQStash(token, retry=False, base_url=self.settings.url)

    async def close(self) -> None:
        await self.client.http._client.aclose()  # the SDK has no way to close what it opened

    async def tell(self, schedule: Schedule) -> None:
        """Make QStash know what the schedule is now, whatever it knew of it. Raises: TellingFailed."""
        if schedule.status == "completed":
            await self.forget(schedule.schedule_id)
            return
        try:
            async with asyncio.timeout(self.settings.timeout.total_seconds()):
                await self.put(schedule)
        except (QStashError, httpx.HTTPError, TimeoutError, ValueError, KeyError) as error:
            raise TellingFailed(said(error)) from error

    async def put(self, schedule: Schedule) -> None:
        schedule_id = str(schedule.schedule_id)
        await self.client.schedule.create(
            destination=delivery_url(self.public_url, schedule.target_id),
            cron=schedule.timetable.pattern.wakes,
            schedule_id=schedule_id,
            body=orjson.dumps({"schedule_id": schedule_id}),
            content_type="application/json",
            retries=RETRIES,
        )
        if schedule.status == "paused":
            await self.client.schedule.pause(schedule_id)
        elif schedule.told_revision is not None:
            await self.client.schedule.resume(schedule_id)

    async def forget(self, schedule_id: UUID) -> None:
        """Raises: TellingFailed."""
        try:
            async with asyncio.timeout(self.settings.timeout.total_seconds()):
                await self.client.schedule.delete(str(schedule_id))
        except (QStashError, httpx.HTTPError, TimeoutError) as error:
            if GONE not in str(error):
                raise TellingFailed(said(error)) from error


def said(error: Exception) -> str:
    if isinstance(error, QStashError):
        return f"QStash refused it: {error}"
    return f"QStash could not be reached: {type(error).__name__}"


def delivery_url(public_url: str, target_id: UUID) -> str:
    return f"{public_url}/api/schedules/trigger/{target_id}"


def verify(settings: Settings, signature: str, body: bytes, path: str) -> None:
    """Whether QStash signed a delivery for this path, with either of our keys. Raises: Unauthenticated.

    The SDK's receiver would do, but that no clock may be a moment behind QStash's: PyJWT overlooks its tolerance.
    """
    url = f"{settings.api.public_url.rstrip('/')}{path}"
    hashed = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()
    for key in (settings.qstash.current_signing_key, settings.qstash.next_signing_key):
        told = claims(signature, key.get_secret_value().strip(), url)
        if told and str(told["body"]).rstrip("=") == hashed.rstrip("="):
            return
    raise Unauthenticated(UNSIGNED)


def claims(signature: str, key: str, url: str) -> dict[str, Any] | None:
    """Of https://upstash.com/docs/qstash/howto/signature; None unless signed with this key, for here and now."""
    try:
        return jwt.decode(
            signature,
            key,
            algorithms=["HS256"],
            issuer="Upstash",
            subject=url,
            leeway=SKEW_SECONDS,
            options={"require": ["iss", "sub", "exp", "nbf", "body"]},
        )
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        return None

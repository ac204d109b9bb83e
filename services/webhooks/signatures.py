"""Signatures of webhooks as https://www.standardwebhooks.com describes them (version 1). Pure.

One description serves both directions: what we send is signed so, and what starts a workflow may be.
"""

import base64
import hmac
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

PREFIX = "whsec_"
SECRET_BYTES = 32
SHORTEST_BYTES, LONGEST_BYTES = 24, 64
"""Of a secret, by the specification."""
VERSION = "v1,"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
MAX_ID_CHARS = 255
MAX_SIGNATURES = 10
MAX_DIGITS = 12


class BadSignature(Exception):
    """A webhook that is not signed with the secret, or not now."""


def make_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The bytes that a secret stands for. Raises: ValueError for one that the specification does not allow."""
    text = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ValueError("must be base64, with or without whsec_ before it") from error
    if not SHORTEST_BYTES <= len(key) <= LONGEST_BYTES:
        raise ValueError(f"must stand for {SHORTEST_BYTES} to {LONGEST_BYTES} bytes")
    return key


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    said = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
    return VERSION + base64.b64encode(hmac.digest(key_of(secret), said, "sha256")).decode()


def headers(keys: Sequence[str], webhook_id: str, now: datetime, body: bytes) -> dict[str, str]:
    """With a signature for each secret: whoever verifies with any of them is content."""
    timestamp = int(now.timestamp())
    signed = " ".join(sign(secret, webhook_id, timestamp, body) for secret in keys)
    return {ID: webhook_id, TIMESTAMP: str(timestamp), SIGNATURE: signed}


def verify(keys: Sequence[str], said: Mapping[str, str], body: bytes, now: datetime, window: timedelta) -> str:
    """The id of a webhook that one of the secrets signed within `window` of now. Raises: BadSignature."""
    webhook_id, signatures = said.get(ID, ""), said.get(SIGNATURE, "").split(" ")
    timestamp = fresh(said.get(TIMESTAMP, ""), now, window)
    if not 0 < len(webhook_id) <= MAX_ID_CHARS or not webhook_id.isascii() or len(signatures) > MAX_SIGNATURES:
        raise BadSignature
    expected = [sign(secret, webhook_id, timestamp, body).encode() for secret in keys]
    if not is_any(expected, signatures):
        raise BadSignature
    return webhook_id


def fresh(timestamp: str, now: datetime, window: timedelta) -> int:
    """Seconds since 1970 that lie within `window` of now. Raises: BadSignature."""
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= MAX_DIGITS):
        raise BadSignature
    if abs(now.timestamp() - int(timestamp)) > window.total_seconds():
        raise BadSignature
    return int(timestamp)


def is_any(expected: Sequence[bytes], given: Sequence[str]) -> bool:
    """Whether one is among the others; compares all of them, in a time that says nothing of how alike they are."""
    found = False
    for signature in given:
        for each in expected:
            found |= hmac.compare_digest(each, signature.encode())
    return found

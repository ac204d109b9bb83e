"""Who may start a workflow, and what they say: our own signed webhooks, Slack's and Telegram's. Pure."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl

import orjson

from services.webhooks import signatures
from services.webhooks.signatures import BadSignature

Format = Literal["standard", "slack", "telegram"]
Headers = Mapping[str, str]
"""By names in lower case."""

FORMATS: tuple[Format, ...] = get_args(Format)
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
CONTENT_TYPES: dict[Format, tuple[str, ...]] = {"standard": (JSON,), "slack": (JSON, FORM), "telegram": (JSON,)}
SIGNED_IN: dict[Format, str] = {
    "standard": signatures.SIGNATURE,
    "slack": "x-slack-signature",
    "telegram": "x-telegram-bot-api-secret-token",
}
SLACK_TIMESTAMP = "x-slack-request-timestamp"
SLACK_SECRET = re.compile(r"[\x21-\x7e]{16,200}")
TELEGRAM_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
MAX_FORM_FIELDS = 100
MESSAGES = ("message", "edited_message", "channel_post", "edited_channel_post", "callback_query")
"""What an update of Telegram may be of, of which the fields are most wanted."""


class BadPayload(Exception):
    """A body that is signed well and cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a webhook says. `key` is the same for its repeats; `fields` are what variables are taken from by name."""

    key: str
    payload: dict[str, Any]
    fields: dict[str, Any]
    challenge: str | None = None
    is_command: bool = False
    """Whether Slack shows the answer to somebody who waits for it."""
    is_interaction: bool = False
    """Whether it is of a click or a form in Slack, which takes an empty 200 and calls all else a failure."""


def format_of(headers: Headers) -> Format:
    """The format of which the headers carry a signature. Raises: BadSignature."""
    for each in FORMATS:
        if headers.get(SIGNED_IN[each]):
            return each
    raise BadSignature


def make_secret(kind: Format) -> str:
    """Raises: ValueError for Slack, which gives each app its own."""
    if kind == "slack":
        raise ValueError("must be the signing secret of your Slack app")
    return signatures.make_secret() if kind == "standard" else secrets.token_urlsafe(32)


def check_secret(kind: Format, secret: str) -> str:
    """Raises: ValueError for what no sender of this kind signs with."""
    if kind == "standard":
        signatures.key_of(secret)
    elif kind == "slack" and not SLACK_SECRET.fullmatch(secret):
        raise ValueError("must be the signing secret of your Slack app: 16 to 200 visible ASCII characters")
    elif kind == "telegram" and not TELEGRAM_TOKEN.fullmatch(secret):
        raise ValueError("must have 16 to 256 characters: letters, digits, _ and -")
    return secret


def check_freshness(kind: Format, headers: Headers, now: datetime, window: timedelta) -> None:
    """What can be said without the secret: Telegram tells no time. Raises: BadSignature."""
    if kind != "telegram":
        stamp = signatures.TIMESTAMP if kind == "standard" else SLACK_TIMESTAMP
        signatures.fresh(headers.get(stamp, ""), now, window)


def verify(kind: Format, keys: Sequence[str], headers: Headers, body: bytes, now: datetime, window: timedelta) -> None:
    """Raises: BadSignature unless it is signed with one of the secrets, within `window` of now."""
    if kind == "standard":
        signatures.verify(keys, headers, body, now, window)
        return
    check_freshness(kind, headers, now, window)
    expected = [slack_signature(key, headers, body) if kind == "slack" else key for key in keys]
    if not signatures.is_any([each.encode() for each in expected], [headers.get(SIGNED_IN[kind], "")]):
        raise BadSignature


def slack_signature(secret: str, headers: Headers, body: bytes) -> str:
    """As https://docs.slack.dev/authentication/verifying-requests-from-slack says."""
    said = b"v0:%b:%b" % (headers.get(SLACK_TIMESTAMP, "").encode(), body)
    return f"v0={hmac.new(secret.encode(), said, hashlib.sha256).hexdigest()}"


def read(kind: Format, headers: Headers, body: bytes) -> Said:
    """What a webhook that was verified says. Raises: BadPayload."""
    readers: dict[Format, Callable[[Headers, bytes], Said]] = {
        "standard": read_standard,
        "slack": read_slack,
        "telegram": read_telegram,
    }
    return readers[kind](headers, body)


def read_standard(headers: Headers, body: bytes) -> Said:
    payload = json_object(body)
    return Said(key_of("standard", headers[signatures.ID]), payload, payload)


def read_telegram(headers: Headers, body: bytes) -> Said:
    update = json_object(body)
    update_id = update.get("update_id")
    if not isinstance(update_id, int) or isinstance(update_id, bool):
        raise BadPayload("is no update of Telegram: update_id must be a whole number")
    message: dict[str, Any] = next((update[name] for name in MESSAGES if isinstance(update.get(name), dict)), {})
    return Said(key_of("telegram", str(update_id)), update, {**update, **message})


def read_slack(headers: Headers, body: bytes) -> Said:
    if media_type(headers) == FORM:
        return read_slack_form(headers, body)
    payload = json_object(body)
    if payload.get("type") == "url_verification" and isinstance(payload.get("challenge"), str):
        return Said("", payload, payload, challenge=payload["challenge"])
    event = payload["event"] if isinstance(payload.get("event"), dict) else {}
    return Said(slack_key(payload.get("event_id"), headers, body), payload, {**payload, **event})


def read_slack_form(headers: Headers, body: bytes) -> Said:
    """A slash command; or an interaction, which is JSON in the one field `payload`."""
    try:
        fields: dict[str, Any] = dict(
            parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS, errors="strict")
        )
    except ValueError as error:
        raise BadPayload(f"is no form of at most {MAX_FORM_FIELDS} fields in UTF-8") from error
    is_command = "command" in fields
    is_interaction = not is_command and "payload" in fields
    if is_interaction:
        fields = json_object(fields["payload"].encode())
    key = slack_key(fields.get("trigger_id"), headers, body)
    return Said(key, fields, fields, is_command=is_command, is_interaction=is_interaction)


def slack_key(named: Any, headers: Headers, body: bytes) -> str:
    """By Slack's own id of what happened, which a repeat keeps; else by what was signed."""
    if isinstance(named, str) and named:
        return key_of("slack", named)
    return key_of("slack signed", f"{headers.get(SLACK_TIMESTAMP)}:{hashlib.sha256(body).hexdigest()}")


def key_of(kind: str, named: str) -> str:
    return hashlib.sha256(f"{kind}:{named}".encode(errors="replace")).hexdigest()


def json_object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadPayload("is not valid JSON") from error
    if not isinstance(value, dict):
        raise BadPayload("must be a JSON object")
    return cast(dict[str, Any], value)


def media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()

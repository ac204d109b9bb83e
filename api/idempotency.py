"""The Idempotency-Key header: with it a request may be repeated and still happens once."""

from typing import Annotated, Any

from fastapi import Header

from api.auth import Caller
from services.runs import idempotency
from services.runs.idempotency import RequestKey

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Visible ASCII. For 24 hours a repeat answers with the run of the first request as it is now.",
    ),
]


def request_key(caller: Caller, route: str, key: str | None, **asked: Any) -> RequestKey | None:
    """The key of a request of the account to a route; `asked` is all that a repeat must have in common with it."""
    return RequestKey(caller.account_id, route, key, idempotency.fingerprint(asked)) if key else None

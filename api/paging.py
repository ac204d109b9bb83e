"""Pages by number, as old frontends ask for them, and cursors, which stay right while rows are added."""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel

from api.errors import invalid

MAX_ROWS = 1000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_BIGINT = 2**63 - 1

PageQuery = Annotated[int, Query(ge=1, le=1_000_000)]
LimitQuery = Annotated[int, Query(ge=1, le=MAX_ROWS)]


class Pagination(BaseModel):
    page: int
    limit: int
    total: int
    pages: int


def pagination(page: int, limit: int, total: int) -> Pagination:
    return Pagination(page=page, limit=limit, total=total, pages=-(-total // limit))


def encode_moment(moment: datetime, row_id: UUID) -> str:
    """A cursor behind the row of that time and id."""
    microseconds = (moment - EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{microseconds}.{row_id}".encode()).decode().rstrip("=")


def decode_moment(cursor: str) -> tuple[datetime, UUID]:
    """Raises: RequestValidationError naming `cursor`."""
    try:
        decoded = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode()
        microseconds, _, row_id = decoded.partition(".")
        return EPOCH + timedelta(microseconds=int(microseconds)), UUID(row_id)
    except (ValueError, OverflowError, binascii.Error) as error:
        raise invalid("cursor", "is not a cursor of this list", where="query") from error


def decode_position(cursor: str) -> int:
    """Raises: RequestValidationError naming `cursor`."""
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 20 and int(cursor) <= MAX_BIGINT):
        raise invalid("cursor", "is not a cursor of this list", where="query")
    return int(cursor)

"""Who is calling, and for which account."""

from collections import OrderedDict
from dataclasses import dataclass, field
from uuid import UUID

from services import accounts
from services.errors import Forbidden
from services.postgres import Pool


@dataclass(frozen=True, slots=True)
class Caller:
    user_id: UUID
    account_id: UUID


@dataclass(frozen=True, slots=True)
class SeenUsers:
    """Users whose personal account is known to exist; the one not seen for longest is forgotten first."""

    size: int = 10_000
    users: OrderedDict[UUID, None] = field(default_factory=OrderedDict)

    def __contains__(self, user_id: UUID) -> bool:
        if user_id not in self.users:
            return False
        self.users.move_to_end(user_id)
        return True

    def add(self, user_id: UUID) -> None:
        self.users[user_id] = None
        if len(self.users) > self.size:
            self.users.popitem(last=False)


async def resolve_caller(pool: Pool, seen: SeenUsers, user_id: UUID, account_id: UUID | None) -> Caller:
    """The caller for the account that is asked for; the personal one, made on first sight, by default.

    Raises: Forbidden when the user does not belong to the account, or there is none.
    """
    if user_id not in seen:
        async with pool.acquire() as conn:
            await accounts.ensure_personal(conn, user_id)
        seen.add(user_id)
    if account_id is None or account_id == user_id:
        return Caller(user_id, user_id)
    async with pool.acquire() as conn:
        member = await accounts.is_member(conn, account_id, user_id)
    if not member:
        raise Forbidden("X-Account-Id names an account that you do not belong to.")
    return Caller(user_id, account_id)

"""Who is calling, for which account, and as what."""

from collections import OrderedDict
from dataclasses import dataclass, field
from uuid import UUID

from services import accounts, members
from services.api_keys import Holder
from services.errors import Forbidden, NotFound
from services.members import Role
from services.postgres import Pool
from services.stream_tokens import StreamPass

FOREIGN_ACCOUNT = "X-Account-Id names an account that you do not belong to."
MISSING_ACCOUNT = "Account not found."


@dataclass(frozen=True, slots=True)
class Identity:
    """A person, as a token says or as an API key stands for; with a stream token's pass it is good for that alone."""

    user_id: UUID
    key: Holder | None = None
    stream: StreamPass | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """`key` is None for a person who signed in; an API key does no more than its scopes and its person's role."""

    user_id: UUID
    account_id: UUID
    role: Role = "owner"
    key: Holder | None = None


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

    def forget(self, user_id: UUID) -> None:
        self.users.pop(user_id, None)

    def forget_all(self) -> None:
        self.users.clear()


async def resolve_caller(
    pool: Pool, seen: SeenUsers, who: Identity, header: UUID | None, *, path: UUID | None = None
) -> Caller:
    """The caller for the account that the path or else X-Account-Id names.

    By default it is an API key's own, or the personal one of whoever signed in, made on first sight.
    Raises: Forbidden, or for a path NotFound, when the caller does not belong to the account, or there is none.
    """
    wanted = path or header
    if who.key:
        return caller_by_key(who.key, wanted, refused(path))
    if who.user_id not in seen:
        async with pool.acquire() as conn:
            await accounts.ensure_personal(conn, who.user_id)
        seen.add(who.user_id)
    if wanted is None or wanted == who.user_id:
        return Caller(who.user_id, who.user_id)
    role = await members.role_of(pool, wanted, who.user_id)
    if role is None:
        raise refused(path)
    return Caller(who.user_id, wanted, role)


def caller_by_key(key: Holder, wanted: UUID | None, refusal: Exception) -> Caller:
    if wanted not in (None, key.account_id):
        raise refusal
    return Caller(key.user_id, key.account_id, key.role, key)


def refused(path: UUID | None) -> Forbidden | NotFound:
    return NotFound(MISSING_ACCOUNT) if path else Forbidden(FOREIGN_ACCOUNT)

"""Accounts and their members."""

from datetime import datetime
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from api.deps import CallerDep, PoolDep, Resources, ResourcesDep
from api.document import ATTACHED
from api.fields import Line
from api.routes.projects import Deleted, remove_project
from services import accounts, api_keys, export, members, projects
from services.accounts import Membership
from services.members import Member, Role
from services.postgres import transaction
from services.projects import Project

router = APIRouter(prefix="/accounts", tags=["accounts"])

PROJECTS_AT_A_TIME = 100
NDJSON = "application/x-ndjson"


class AccountIn(BaseModel):
    name: Line


class AccountOut(BaseModel):
    """`role` is the caller's."""

    account_id: UUID
    name: str
    personal: bool
    role: Role
    created_at: datetime


class AccountList(BaseModel):
    accounts: list[AccountOut]


class RolePatch(BaseModel):
    role: Role


class MemberIn(RolePatch):
    user_id: UUID
    role: Role = "member"


class MemberOut(BaseModel):
    user_id: UUID
    role: Role
    created_at: datetime


class MemberList(BaseModel):
    members: list[MemberOut]


def shown(account: Membership) -> AccountOut:
    return AccountOut.model_validate(account, from_attributes=True)


def shown_member(member: Member) -> MemberOut:
    return MemberOut.model_validate(member, from_attributes=True)


@router.get("")
async def list_accounts(caller: CallerDep, pool: PoolDep) -> AccountList:
    """Those that the caller belongs to; X-Account-Id takes the id of any."""
    return AccountList(accounts=[shown(account) for account in await accounts.of_user(pool, caller.user_id)])


@router.post("")
async def create_account(asked: AccountIn, caller: CallerDep, pool: PoolDep) -> AccountOut:
    """An account beside the personal one, which others may be added to."""
    async with transaction(pool) as conn:
        return shown(await accounts.create(conn, caller.user_id, asked.name))


@router.delete("/{account_id}")
async def delete_account(account_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    """Stops the runs of the account, then deletes all that is in it, projects first, and its sandboxes.

    What does not fit into one request goes on with the next. A personal account begins anew when its owner comes back.
    """
    deleted = False
    while not deleted:
        for project in await some_projects(resources, caller.account_id):
            await remove_project(resources, caller.account_id, project.project_id)
        async with transaction(resources.pool) as conn:
            deleted = await accounts.delete(conn, caller.account_id)
    resources.seen.forget(caller.account_id)
    await resources.known_keys.announce(caller.account_id)
    await resources.stores.versions.forget(caller.account_id)
    return Deleted(message="Account deleted.")


async def some_projects(resources: Resources, account_id: UUID) -> list[Project]:
    found, _ = await projects.page(resources.pool, account_id, limit=PROJECTS_AT_A_TIME, offset=0)
    return found


@router.get(
    "/{account_id}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}, "headers": ATTACHED}},
)
async def export_account(account_id: UUID, caller: CallerDep, pool: PoolDep) -> StreamingResponse:
    """All rows of the account as lines of JSON that say in `record` what they are; no files of sandboxes."""
    headers = {"Content-Disposition": f'attachment; filename="{caller.account_id}.ndjson"'}
    return StreamingResponse(export.lines(pool, caller.account_id), media_type=NDJSON, headers=headers)


@router.get("/{account_id}/members")
async def list_members(account_id: UUID, caller: CallerDep, pool: PoolDep) -> MemberList:
    found = await members.of_account(pool, caller.account_id)
    return MemberList(members=[shown_member(member) for member in found])


@router.post("/{account_id}/members")
async def add_member(account_id: UUID, asked: MemberIn, caller: CallerDep, pool: PoolDep) -> MemberOut:
    """A user by the id that their tokens say; an owner decides, a member works, a viewer reads."""
    async with transaction(pool) as conn:
        return shown_member(await members.add(conn, caller.account_id, asked.user_id, asked.role))


@router.patch("/{account_id}/members/{user_id}")
async def change_member(
    account_id: UUID, user_id: UUID, asked: RolePatch, caller: CallerDep, resources: ResourcesDep
) -> MemberOut:
    """409 when nobody would be left who is an owner."""
    async with transaction(resources.pool) as conn:
        member = await members.change(conn, caller.account_id, user_id, asked.role)
    await resources.known_keys.announce(caller.account_id)
    return shown_member(member)


@router.delete("/{account_id}/members/{user_id}")
async def remove_member(account_id: UUID, user_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    """Their API keys of this account end with it, and their open streams a moment later."""
    return await removed(resources, caller.account_id, user_id)


@router.post("/{account_id}/leave")
async def leave_account(account_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    return await removed(resources, caller.account_id, caller.user_id)


async def removed(resources: Resources, account_id: UUID, user_id: UUID) -> Deleted:
    async with transaction(resources.pool) as conn:
        await members.remove(conn, account_id, user_id)
        await api_keys.revoke_those_of(conn, account_id, user_id)
    await resources.known_keys.announce(account_id)
    return Deleted(message="Member removed.")

"""`keys list | revoke`: API keys of an account; nobody sees a secret."""

import argparse
from dataclasses import asdict
from datetime import UTC, datetime

from services import api_keys
from services.admin.accounts import account_of
from services.admin.arguments import add_json, identifier
from services.admin.opened import on_pool, on_stores
from services.admin.output import Output, ago
from services.api_keys import ApiKey
from services.known_keys import KnownKeys
from services.postgres import Pool, transaction
from services.runs.stores import Stores
from services.settings import Settings


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("keys", help="API keys of accounts", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="all keys of an account, newest first")
    revoking = commands.add_parser("revoke", help="make a key, and all that were made with it, void for good")
    for command in (listing, revoking):
        command.add_argument("account", metavar="ACCOUNT", help="its id, or the name of a personal account")
    revoking.add_argument("key", metavar="KEY_ID", type=identifier)
    listing.set_defaults(run=list_keys)
    revoking.set_defaults(run=revoke)
    add_json(listing, revoking)


def list_keys(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(pool: Pool) -> list[ApiKey]:
        async with pool.acquire() as conn:
            account = await account_of(conn, options.account)
        return await api_keys.of_account(pool, account.account_id)

    tell(options, output, on_pool(settings, act))
    return 0


def revoke(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(stores: Stores) -> ApiKey:
        async with transaction(stores.pool) as conn:
            account = await account_of(conn, options.account)
            key = await api_keys.revoke(conn, account.account_id, options.key)
        known = KnownKeys(settings.api_keys, stores.pool, stores.shards.home.redis, stores.shards.home.channels)
        await known.announce(account.account_id)
        return key

    tell(options, output, [on_stores(settings, act)])
    return 0


def tell(options: argparse.Namespace, output: Output, keys: list[ApiKey]) -> None:
    if options.json:
        output.document({"keys": [asdict(key) for key in keys]})
        return
    now = datetime.now(UTC)
    rows = [
        (
            str(key.key_id),
            key.title,
            key.status,
            ", ".join(key.scopes),
            ago(key.last_used_at, now) if key.last_used_at else "never",
            f"{key.expires_at:%Y-%m-%d}" if key.expires_at else "never",
        )
        for key in keys
    ]
    output.table("API keys" if rows else "No API keys", ("id", "title", "status", "scopes", "used", "expires"), rows)

"""`secrets renew`: encrypt secrets of agents and webhooks with the first of SECRETS_KEYS; the others can then go."""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from services import agent_versions
from services.admin.arguments import add_json
from services.admin.output import Output
from services.agent_versions import AgentVersion
from services.errors import Unavailable
from services.postgres import Pool, Unreachable, open_pool
from services.secrets import Secrets, SecretUnreadable
from services.settings import Settings
from services.webhooks import secret_pair

PAGE = 100


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("secrets", help="secrets that are encrypted at rest", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    renewing = commands.add_parser("renew", help="encrypt them with the first of SECRETS_KEYS")
    renewing.set_defaults(run=renew)
    add_json(renewing)


def renew(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    renewed, unreadable = asyncio.run(renew_all(settings))
    if not options.json:
        output.say(f"Secrets of {renewed} agent versions are encrypted with the first key.")
    for version in unreadable:
        output.fail(f"no key in SECRETS_KEYS opens version {version.version_number} of agent {version.agent_id}")
    pairs, shut = asyncio.run(renew_webhooks(settings))
    if options.json:
        output.document({"agent_versions": renewed, "webhooks": pairs, "unreadable": len(unreadable) + len(shut)})
    else:
        output.say(f"Secrets of {pairs} webhooks are encrypted with the first key.")
    for table, owner in shut:
        output.fail(f"no key in SECRETS_KEYS opens the secret of {owner} in {table}")
    return 1 if unreadable or shut else 0


async def renew_all(settings: Settings) -> tuple[int, list[AgentVersion]]:
    """How many versions were renewed, and those that no key opens. Raises: Unavailable."""
    async with opened(settings) as pool:
        return await renew_pages(pool, Secrets.of(settings.secrets))


async def renew_webhooks(settings: Settings) -> tuple[int, list[tuple[str, UUID]]]:
    """How many secrets of accounts and workflows were renewed, and whose no key opens. Raises: Unavailable."""
    renewed, unreadable = 0, list[tuple[str, UUID]]()
    async with opened(settings) as pool:
        for table in secret_pair.OWNERS:
            last: UUID | None = UUID(int=0)
            while last:
                last, count, shut = await secret_pair.renew_page(pool, Secrets.of(settings.secrets), table, last, PAGE)
                renewed += count
                unreadable += [(table, owner) for owner in shut]
    return renewed, unreadable


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Pool]:
    try:
        pool = await open_pool(settings.postgres, min_size=0)
        try:
            yield pool
        finally:
            await pool.close()
    except Unreachable as error:
        raise Unavailable("Postgres cannot be reached; what was renewed so far stays.") from error


async def renew_pages(pool: Pool, secrets: Secrets) -> tuple[int, list[AgentVersion]]:
    renewed, last = 0, UUID(int=0)
    unreadable: list[AgentVersion] = []
    while page := await agent_versions.all_after(pool, last, PAGE):
        last = page[-1].version_id
        for version in page:
            try:
                await agent_versions.keep_renewed(pool, version.renewed(secrets))
                renewed += 1
            except SecretUnreadable:
                unreadable.append(version)
    return renewed, unreadable

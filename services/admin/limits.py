"""`limits show|set ACCOUNT`: what an account may ask for, where that is not what the settings say."""

import argparse
from dataclasses import asdict, replace
from uuid import UUID

import asyncpg

from services import account_limits
from services.account_limits import AccountLimits
from services.admin.opened import on_pool
from services.admin.output import Output
from services.errors import NotFound
from services.postgres import Pool
from services.settings import Settings

DEFAULT = "default"
MISSING = "There is no account {0}."
MOST = 2**31 - 1


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("limits", help="how many runs and requests an account may have", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    showing = commands.add_parser("show", help="what holds for an account")
    setting = commands.add_parser("set", help="give an account other limits than those of the settings")
    for command in (showing, setting):
        command.add_argument("account", type=UUID, metavar="ACCOUNT", help="its id; a person's own has the user's")
        command.add_argument("--json", action="store_true", help="answer in one JSON document")
    setting.add_argument("--max-concurrent-runs", type=number, metavar="N", help="0: no limit; default: as set")
    setting.add_argument("--rate-limit-per-minute", type=number, metavar="N", help="0: no limit; default: as set")
    showing.set_defaults(run=show)
    setting.set_defaults(run=change)


def number(text: str) -> int | str:
    """A limit, or `default`."""
    if text == DEFAULT:
        return text
    if not (text.isascii() and text.isdecimal()) or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor {DEFAULT!r}")
    return int(text)


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def look(pool: Pool) -> AccountLimits:
        if not await pool.fetchval("SELECT true FROM accounts WHERE account_id = $1", options.account):
            raise NotFound(MISSING.format(options.account))
        return await account_limits.get(pool, options.account)

    return tell(settings, options, output, on_pool(settings, look))


def change(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    asked = {"max_concurrent_runs": options.max_concurrent_runs, "rate_limit_per_minute": options.rate_limit_per_minute}
    changes = {name: None if value == DEFAULT else value for name, value in asked.items() if value is not None}

    async def keep(pool: Pool) -> AccountLimits:
        async with pool.acquire() as conn, conn.transaction():
            limits = replace(await account_limits.get(conn, options.account), **changes)
            try:
                await account_limits.keep(conn, options.account, limits)
            except asyncpg.ForeignKeyViolationError as error:
                raise NotFound(MISSING.format(options.account)) from error
        return limits

    return tell(settings, options, output, on_pool(settings, keep))


def tell(settings: Settings, options: argparse.Namespace, output: Output, own: AccountLimits) -> int:
    """What holds, and whether that is the account's own."""
    usual = {name: getattr(settings.limits, name) for name in asdict(own)}
    holds = {name: usual[name] if value is None else value for name, value in asdict(own).items()}
    if options.json:
        output.document({"account_id": str(options.account), "own": asdict(own), "holds": holds})
        return 0
    rows = [
        (name.upper(), str(value or "no limit"), "as set" if asdict(own)[name] is None else "its own")
        for name, value in holds.items()
    ]
    output.table(f"Limits of account {options.account}", ("limit", "holds", "from"), rows)
    return 0

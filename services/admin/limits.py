"""`limits show|set ACCOUNT`: what an account may ask for, where that is not what the settings say."""

import argparse
from dataclasses import asdict, replace

from services import account_limits
from services.account_limits import AccountLimits
from services.accounts import Account
from services.admin.accounts import add_account, run
from services.admin.arguments import MOST
from services.admin.output import Output
from services.postgres import Connection
from services.settings import Settings

DEFAULT = "default"


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("limits", help="how many runs and requests an account may have", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    showing = commands.add_parser("show", help="what holds for an account")
    setting = commands.add_parser("set", help="give an account other limits than those of the settings")
    for command in (showing, setting):
        add_account(command)
    setting.add_argument("--max-concurrent-runs", type=number, metavar="N", help="0: no limit; default: as set")
    setting.add_argument("--rate-limit-per-minute", type=number, metavar="N", help="0: no limit; default: as set")
    showing.set_defaults(run=show)
    setting.set_defaults(run=change, usage=setting)


def number(text: str) -> int | str:
    """A limit, or `default`."""
    if text == DEFAULT:
        return text
    if not (text.isascii() and text.isdecimal()) or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor {DEFAULT!r}")
    return int(text)


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def look(conn: Connection, account: Account) -> AccountLimits:
        return await account_limits.get(conn, account.account_id)

    return tell(settings, options, output, *run(settings, options, look))


def change(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    asked = {"max_concurrent_runs": options.max_concurrent_runs, "rate_limit_per_minute": options.rate_limit_per_minute}
    changes = {name: None if value == DEFAULT else value for name, value in asked.items() if value is not None}
    if not changes:
        options.usage.error("say --max-concurrent-runs, --rate-limit-per-minute, or both")

    async def keep(conn: Connection, account: Account) -> AccountLimits:
        limits = replace(await account_limits.get(conn, account.account_id), **changes)
        await account_limits.keep(conn, account.account_id, limits)
        return limits

    return tell(settings, options, output, *run(settings, options, keep))


def tell(settings: Settings, options: argparse.Namespace, output: Output, account: Account, own: AccountLimits) -> int:
    """What holds, and whether that is the account's own."""
    usual = {name: getattr(settings.limits, name) for name in asdict(own)}
    holds = {name: usual[name] if value is None else value for name, value in asdict(own).items()}
    if options.json:
        output.document({"account_id": account.account_id, "own": asdict(own), "holds": holds})
        return 0
    rows = [
        (name.upper(), str(value or "no limit"), "as set" if asdict(own)[name] is None else "its own")
        for name, value in holds.items()
    ]
    output.table(f"Limits of {account.name} ({account.account_id})", ("limit", "holds", "from"), rows)
    return 0

"""`accounts list | show | tier`, `credits grant | show | ledger`: what accounts may use, and what they have."""

import argparse
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar
from uuid import UUID

from services import account_overview, accounts
from services.account_overview import SeenAccount
from services.accounts import Account
from services.admin.arguments import add_json, positive
from services.admin.opened import on_pool
from services.admin.output import Output
from services.billing import ledger
from services.billing.ledger import Entry, Standing
from services.billing.prices import MICRO
from services.errors import NotFound, Unprocessable
from services.postgres import Connection, Pool, transaction
from services.settings import Settings

T = TypeVar("T")

LISTED = 20
MOST_CREDITS = Decimal(1_000_000_000)


def add(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("accounts", help="accounts and their tiers", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="newest first")
    listing.add_argument("--search", default="", help="a part of the name, or the beginning of the id")
    listing.add_argument("--limit", type=positive, default=LISTED, help=f"at most so many ({LISTED})")
    listing.set_defaults(run=list_accounts)
    showing = commands.add_parser("show", help="one, and how much it has")
    add_account(showing)
    showing.set_defaults(run=show_account)
    add_json(listing)
    placing = commands.add_parser("tier", help="put an account into a tier of BILLING_TIERS")
    add_account(placing)
    placing.add_argument("tier", metavar="TIER", help="- for the default one, whichever that is")
    placing.set_defaults(run=place)


def add_credits(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = groups.add_parser("credits", help="credits of accounts", description=__doc__)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    granting = commands.add_parser("grant", help="add credits; an amount below zero takes them back")
    add_account(granting)
    granting.add_argument("amount", metavar="AMOUNT", type=amount, help="in credits, up to six places: 5, 0.25, -1")
    granting.add_argument("--note", default="", help="why, for the ledger")
    granting.set_defaults(run=grant)

    showing = commands.add_parser("show", help="what an account has")
    add_account(showing)
    showing.set_defaults(run=show)

    listing = commands.add_parser("ledger", help="what came and went, newest first")
    add_account(listing)
    listing.add_argument("--limit", type=positive, default=LISTED, help=f"at most so many ({LISTED})")
    listing.set_defaults(run=list_entries)


def add_account(command: argparse.ArgumentParser) -> None:
    command.add_argument("account", metavar="ACCOUNT", help="its id, or the name of a personal account")
    command.add_argument("--json", action="store_true", help="for scripts")


def amount(text: str) -> int:
    """Credits as micro-credits."""
    try:
        micros = Decimal(text) * MICRO
    except InvalidOperation as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of credits") from error
    if not micros.is_finite() or micros != micros.to_integral_value() or not 0 < abs(micros) <= MOST_CREDITS * MICRO:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of whole micro-credits other than 0")
    return int(micros)


def list_accounts(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    found = on_pool(settings, lambda pool: account_overview.list_accounts(pool, options.search, options.limit))
    tell_accounts(options, output, found)
    return 0


def show_account(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(conn: Connection, account: Account) -> SeenAccount | None:
        return await account_overview.get(conn, account.account_id)

    _, seen = run(settings, options, act)
    tell_accounts(options, output, [seen] if seen else [])
    return 0


def tell_accounts(options: argparse.Namespace, output: Output, found: list[SeenAccount]) -> None:
    if options.json:
        output.document({"accounts": [{**asdict(seen), "balance": in_words(seen.balance)} for seen in found]})
        return
    rows = [
        (
            str(seen.account_id),
            seen.name,
            "person" if seen.personal else "team",
            seen.tier or "default",
            in_words(seen.balance),
            *map(str, (seen.live_runs, seen.projects, seen.members, seen.keys)),
        )
        for seen in found
    ]
    columns = ("account", "name", "kind", "tier", "credits", "live runs", "projects", "members", "keys")
    output.table("Accounts" if rows else "No such account", columns, rows)


def place(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    tier = None if options.tier == "-" else options.tier
    if tier and tier not in settings.billing.tiers:
        raise Unprocessable(f"There is no tier {tier} in BILLING_TIERS, which has {', '.join(settings.billing.tiers)}.")

    async def act(conn: Connection, account: Account) -> Standing:
        await ledger.set_tier(conn, account.account_id, tier)
        return await ledger.standing(conn, account.account_id)

    return tell(options, output, *run(settings, options, act))


def grant(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(conn: Connection, account: Account) -> Standing:
        return await ledger.grant(conn, account.account_id, options.amount, options.note)

    return tell(options, output, *run(settings, options, act))


def show(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(conn: Connection, account: Account) -> Standing:
        return await ledger.standing(conn, account.account_id)

    return tell(options, output, *run(settings, options, act))


def list_entries(settings: Settings, options: argparse.Namespace, output: Output) -> int:
    async def act(conn: Connection, account: Account) -> tuple[list[Entry], bool]:
        return await ledger.page(conn, account.account_id, limit=options.limit)

    account, (entries, more) = run(settings, options, act)
    if options.json:
        shown = [{**asdict(entry), "amount": in_words(entry.amount)} for entry in entries]
        output.document({"account_id": account.account_id, "entries": shown, "has_more": more})
        return 0
    rows = [(f"{e.created_at:%Y-%m-%d %H:%M:%S}", e.kind, in_words(e.amount), about(e)) for e in entries]
    output.table(
        f"Ledger of {account.name}{', its newest part' if more else ''}", ("when", "what", "credits", ""), rows
    )
    return 0


def about(entry: Entry) -> str:
    if entry.kind == "grant":
        return entry.note
    tokens = entry.usage.get("total_tokens", 0)
    return f"{entry.model_name}, {tokens} tokens{', estimated' if entry.estimated else ''}, run {entry.agent_run_id}"


def tell(options: argparse.Namespace, output: Output, account: Account, standing: Standing) -> int:
    shown: dict[str, Any] = {
        "account_id": account.account_id,
        "name": account.name,
        "tier": standing.tier,
        "balance": in_words(standing.balance),
        "reserved": in_words(standing.reserved),
    }
    if options.json:
        output.document(shown)
    else:
        tier = f"tier {standing.tier}" if standing.tier else "the default tier"
        output.say(f"{account.name} ({account.account_id}), in {tier}")
        output.say(f"{shown['balance']} credits, of which {shown['reserved']} are reserved for calls under way")
    return 0


def in_words(micros: int) -> str:
    """Exactly, in credits."""
    return f"{Decimal(micros) / MICRO:f}"


def run(
    settings: Settings, options: argparse.Namespace, act: Callable[[Connection, Account], Awaitable[T]]
) -> tuple[Account, T]:
    """Raises: NotFound for the account; Unavailable."""

    async def whole(pool: Pool) -> tuple[Account, T]:
        async with transaction(pool) as conn:
            account = await account_of(conn, options.account)
            return account, await act(conn, account)

    return on_pool(settings, whole)


async def account_of(conn: Connection, named: str) -> Account:
    found = await accounts.find(conn, as_uuid(named), named)
    if found is None:
        raise NotFound(f"There is no account {named}.")
    return found


def as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None

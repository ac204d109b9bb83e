"""`credits` and `accounts`, as an operator calls them."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from services import settings
from services.admin.cli import main
from services.settings import BillingSettings, PostgresSettings, Settings, Tier
from tests.services.admin.test_limits import make_account


@pytest.fixture
def account(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of one; the commands know two tiers."""
    billing = BillingSettings(tiers={"free": Tier(), "pro": Tier()})
    loaded = Settings(postgres=PostgresSettings(url=SecretStr(database_url)), billing=billing)
    monkeypatch.setattr(settings, "load", lambda: loaded)
    return str(asyncio.run(make_account(database_url)))


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_credits_are_granted_and_taken_back_to_the_millionth(account: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "credits", "show", account)["balance"] == "0"
    said(capsys, "credits", "grant", account, "5.000001", "--note", "welcome")
    now = said(capsys, "credits", "grant", account, "-1.5")
    assert (now["balance"], now["reserved"]) == ("3.500001", "0")
    assert said(capsys, "credits", "show", account) == now
    entries = said(capsys, "credits", "ledger", account)["entries"]
    assert [(entry["kind"], entry["amount"], entry["note"]) for entry in entries] == [
        ("grant", "-1.5", ""),
        ("grant", "5.000001", "welcome"),
    ]
    assert said(capsys, "credits", "ledger", account, "--limit", "1")["has_more"]
    for command in ("show", "ledger"):
        assert main(["credits", command, account]) == 0
    assert "welcome" in capsys.readouterr().out


def test_an_account_is_put_into_a_tier_that_there_is(account: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "accounts", "tier", account, "pro")["tier"] == "pro"
    assert main(["accounts", "tier", account, "gold"]) == 1
    assert "free, pro" in capsys.readouterr().err
    assert said(capsys, "accounts", "tier", account, "-")["tier"] is None


@pytest.mark.usefixtures("account")
def test_what_is_no_account_and_no_amount_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for named in (str(uuid4()), "nobody"):
        assert main(["credits", "grant", named, "1"]) == 1
        assert named in capsys.readouterr().err
    for amount in ("0", "much", "0.0000001", "nan", "1e30"):
        with pytest.raises(SystemExit) as refused:
            main(["credits", "grant", str(uuid4()), amount])
        assert refused.value.code == 2

import asyncio
import json
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from services import accounts, settings
from services.admin.cli import main
from services.postgres import open_pool
from services.settings import LimitSettings, PostgresSettings, Settings


@pytest.fixture
def known(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands load."""
    postgres = PostgresSettings(url=SecretStr(database_url))
    limits = LimitSettings(max_concurrent_runs=3, rate_limit_per_minute=100)
    loaded = Settings(postgres=postgres, limits=limits)
    monkeypatch.setattr(settings, "load", lambda: loaded)


async def make_account(database_url: str) -> UUID:
    pool = await open_pool(PostgresSettings(url=SecretStr(database_url)), min_size=0)
    async with pool.acquire() as conn:
        account = await accounts.ensure_personal(conn, uuid4())
    await pool.close()
    return account.account_id


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, dict[str, int | None]]:
    assert main(["limits", *argv, "--json"]) == 0
    answer: dict[str, dict[str, int | None]] = json.loads(capsys.readouterr().out)
    return answer


def test_an_account_is_given_limits_one_by_one_and_loses_them_again(
    known: None, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    account = str(asyncio.run(make_account(database_url)))
    assert said(capsys, "show", account)["holds"] == {"max_concurrent_runs": 3, "rate_limit_per_minute": 100}
    said(capsys, "set", account, "--max-concurrent-runs", "10")
    changed = said(capsys, "set", account, "--rate-limit-per-minute", "0")
    assert changed["holds"] == {"max_concurrent_runs": 10, "rate_limit_per_minute": 0}
    assert said(capsys, "show", account) == changed
    said(capsys, "set", account, "--max-concurrent-runs", "default", "--rate-limit-per-minute", "default")
    assert said(capsys, "show", account)["own"] == {"max_concurrent_runs": None, "rate_limit_per_minute": None}
    assert main(["limits", "show", account]) == 0
    assert "no limit" not in capsys.readouterr().out


def test_an_account_that_does_not_exist_and_a_number_that_is_none_are_refused(
    known: None, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = str(uuid4())
    for command in (["show"], ["set", "--max-concurrent-runs", "1"]):
        assert main(["limits", command[0], nobody, *command[1:]]) == 1
        assert nobody in capsys.readouterr().err
    for number in ("-1", "many", "1.5", str(2**31)):
        with pytest.raises(SystemExit) as refused:
            main(["limits", "set", nobody, f"--max-concurrent-runs={number}"])
        assert refused.value.code == 2

"""What operators type wrongly, interrupt or cut off, and what scripts read."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from pydantic import SecretStr

from services import old_messages, settings
from services.admin.cli import main
from services.admin.output import Output
from services.embedded.environment import CHECKOUT
from services.settings import PostgresSettings, Settings
from tests.services.admin.test_limits import make_account
from tests.waiting import PATIENT

HUGE = "99999999999999999999"


@pytest.fixture
def account(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of one, which is its name, too."""
    loaded = Settings(postgres=PostgresSettings(url=SecretStr(database_url)))
    monkeypatch.setattr(settings, "load", lambda: loaded)
    return str(asyncio.run(make_account(database_url)))


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "argv",
    [
        ("runs", "list", "--limit"),
        ("runs", "show", "00000000-0000-0000-0000-000000000000", "--events"),
        ("accounts", "list", "--limit"),
        ("credits", "ledger", "anybody", "--limit"),
        ("dead-letters", "list", "--limit"),
        ("dead-letters", "list", "--scan"),
        ("schedules", "list", "--limit"),
    ],
    ids=" ".join,
)
def test_a_count_that_no_store_could_take_is_refused_by_its_name(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    for number in ("0", "-3", "many", HUGE):
        assert f"argument {argv[-1]}" in refused(capsys, *argv[:-1], f"{argv[-1]}={number}")


def test_an_account_is_named_to_limits_as_to_all_others(account: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "limits", "set", account, "--max-concurrent-runs", "7")["account_id"] == account
    assert answer(capsys, "limits", "show", account)["holds"]["max_concurrent_runs"] == 7
    assert main(["limits", "show", "nobody"]) == 1
    assert capsys.readouterr().err == "admin: There is no account nobody.\n"


def test_limits_that_are_set_to_nothing_are_not_understood(account: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--max-concurrent-runs" in refused(capsys, "limits", "set", account)


@pytest.mark.usefixtures("account")
def test_retention_says_in_a_sentence_why_it_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retention", "run"]) == 1
    assert "--events" in capsys.readouterr().err
    assert main(["retention", "run", "--events", "5m"]) == 1
    assert capsys.readouterr().err == "admin: RETENTION_EVENTS must be 0 (never) or at least 1h\n"


def test_what_takes_long_to_count_is_removed_all_the_same(
    account: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_long(*_arguments: object) -> int:
        raise TimeoutError

    monkeypatch.setattr(old_messages, "count_old", too_long)
    assert answer(capsys, "retention", "run", "--messages", "30d") == {"removed": {"messages": 0}, "dry_run": False}
    assert main(["retention", "run", "--messages", "30d", "--dry-run"]) == 1
    assert "took too long" in capsys.readouterr().err


def test_a_title_that_is_longer_than_its_table_stays_whole(account: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["limits", "show", account]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"Limits of {account} ({account})"


def test_scripts_read_times_as_iso_8601_and_durations_in_seconds(
    account: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [seen] = answer(capsys, "accounts", "show", account)["accounts"]
    assert "T" in seen["created_at"]
    assert datetime.fromisoformat(seen["created_at"]).utcoffset() is not None
    Output().document({"age": timedelta(seconds=90)})
    assert json.loads(capsys.readouterr().out) == {"age": 90.0}


@pytest.mark.usefixtures("account")
def test_renewed_secrets_are_told_to_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "secrets", "renew") == {"agent_versions": 0, "webhooks": 0, "unreadable": 0}


def started(database_url: str, *argv: str, **streams: Any) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "DATABASE_URL": database_url, "BROKER": "redis"}
    return subprocess.Popen([sys.executable, "-m", "services.admin", *argv], cwd=CHECKOUT, env=env, **streams)


def test_a_table_of_which_nobody_reads_the_rest_is_no_failure(database_url: str) -> None:
    asyncio.run(make_account(database_url))
    unread, written = os.pipe()
    os.close(unread)
    process = started(database_url, "accounts", "list", stdout=written, stderr=subprocess.PIPE)
    os.close(written)
    _, said = process.communicate(timeout=PATIENT)
    assert (process.returncode, said) == (0, b"")


def test_whoever_interrupts_a_command_is_shown_no_traceback(database_url: str) -> None:
    """Nor while it loads its modules, which is most of its time."""
    process = started(database_url, "accounts", "list", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until_it_loads(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENT)
    assert process.returncode in (-signal.SIGINT, 130)
    assert said == b""


def wait_until_it_loads(pid: int) -> None:
    """Until the first library that our modules need is there."""
    deadline = monotonic() + PATIENT
    while "libssl" not in Path(f"/proc/{pid}/maps").read_text():
        assert monotonic() < deadline, "it loads nothing"

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from services import accounts, agents, workflows
from services.admin.cli import main
from services.admin.secret_keys import renew_all, renew_webhooks
from services.agents import Change
from services.known_versions import KnownVersions
from services.postgres import Pool, transaction
from services.secrets import Secrets, SecretUnreadable
from services.settings import SecretsSettings, Settings
from services.webhooks import account_secrets, workflow_webhooks

OLD, NEW = "an-old-key-of-32-characters-or-more", "a-new-key-of-32-characters-or-more!"
PARTS: dict[str, Any] = {
    "custom_mcps": [
        {"name": "S", "type": "http", "config": {"url": "https://a.example/?key=hunter2", "headers": {"A": "hunter2"}}}
    ]
}


def keyed(settings: Settings, *keys: str) -> Settings:
    return settings.model_copy(update={"secrets": SecretsSettings(keys=SecretStr(",".join(keys)))})


async def test_after_a_renewal_the_old_key_is_not_needed_any_more(settings: Settings, pool: Pool) -> None:
    async with transaction(pool) as conn:
        account = await accounts.ensure_personal(conn, uuid4())
        agent = await agents.create(conn, Secrets([OLD]), account.account_id, Change(PARTS, {"name": "A"}))
    assert agent.current_version_id
    with pytest.raises(SecretUnreadable):
        await KnownVersions(pool).opened(uuid4(), agent.current_version_id, Secrets([NEW]))
    assert await renew_all(keyed(settings, NEW, OLD)) == (1, [])
    opened = await KnownVersions(pool).opened(uuid4(), agent.current_version_id, Secrets([NEW]))
    assert opened
    assert opened.custom_mcps == PARTS["custom_mcps"]


async def test_what_no_key_opens_is_told_and_left_as_it_is(settings: Settings, pool: Pool) -> None:
    async with transaction(pool) as conn:
        account = await accounts.ensure_personal(conn, uuid4())
        lost = await agents.create(conn, Secrets([OLD]), account.account_id, Change(PARTS, {"name": "A"}))
        await agents.create(conn, Secrets([NEW]), account.account_id, Change(PARTS, {"name": "B"}))
    renewed, unreadable = await renew_all(keyed(settings, NEW))
    assert renewed == 1
    assert [version.version_id for version in unreadable] == [lost.current_version_id]
    assert await KnownVersions(pool).opened(uuid4(), unreadable[0].version_id, Secrets([OLD]))


async def test_secrets_of_webhooks_are_renewed_too_and_those_that_no_key_opens_are_told(
    settings: Settings, pool: Pool
) -> None:
    async with transaction(pool) as conn:
        account_id = (await accounts.ensure_personal(conn, uuid4())).account_id
        workflow_id = (await workflows.create(conn, account_id, workflows.Change({"name": "W"}))).workflow_id
        await account_secrets.of_accounts(conn, Secrets([OLD]), [account_id])
        rotated = await account_secrets.rotate(conn, Secrets([OLD]), account_id, timedelta(hours=1))
        await workflow_webhooks.put(conn, workflow_id, "standard", Secrets([OLD]).seal("whsec_x"))
        lost = (await accounts.ensure_personal(conn, uuid4())).account_id
        await account_secrets.of_accounts(conn, Secrets(["a-lost-key-of-32-characters-or-more"]), [lost])
    assert await renew_webhooks(keyed(settings, NEW, OLD)) == (2, [("account_webhook_secrets", lost)])
    kept = (await account_secrets.known(pool, [account_id]))[account_id]
    assert kept.keys(Secrets([NEW])) == rotated.keys(Secrets([OLD]))
    assert len(kept.keys(Secrets([NEW]))) == 2
    assert (await workflow_webhooks.get(pool, workflow_id)).keys(Secrets([NEW])) == ["whsec_x"]


def test_the_command_renews_and_says_how_many(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("services.settings.load", lambda: keyed(settings, NEW, OLD))
    assert main(["secrets", "renew"]) == 0
    assert "0 agent versions" in capsys.readouterr().out

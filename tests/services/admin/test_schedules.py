import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from services import settings as settings_module
from services.admin.cli import main
from services.postgres import Pool
from services.settings import Settings
from tests.services.runs.seeds import make_place


async def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert await asyncio.to_thread(main, ["schedules", *arguments, "--json"]) == code
    told = capsys.readouterr()
    return json.loads(told.out) if code == 0 else told.err


async def test_a_schedule_is_listed_shown_paused_and_resumed(
    pool: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_module, "load", lambda: settings)
    place = await make_place(pool)
    schedule_id = await pool.fetchval(
        "INSERT INTO schedules (account_id, thread_id, name, config, prompt, anchor, next_fire_at)"
        " VALUES ($1, $2, 'news', $3, 'What is new?', now(), now() - interval '1 hour') RETURNING schedule_id",
        place.account_id,
        place.thread_id,
        {"type": "simple", "simple": {"interval_type": "hours", "interval_value": 1}},
    )
    await pool.execute(
        "INSERT INTO schedule_firings (schedule_id, fire_time, status, error) VALUES ($1, now(), 'failed', 'No slot.')",
        schedule_id,
    )
    name = str(schedule_id)
    [listed] = (await said(capsys, "list", "--late", "1m", "--account", str(place.account_id)))["schedules"]
    assert (listed["schedule_id"], listed["status"]) == (name, "active")
    assert (await said(capsys, "show", name))["firings"][0]["error"] == "No slot."
    [paused] = (await said(capsys, "pause", name))["schedules"]
    assert (paused["status"], paused["next_fire_at"]) == ("paused", None)
    [resumed] = (await said(capsys, "resume", name))["schedules"]
    assert resumed["status"] == "active"
    assert (await said(capsys, "list", "--late", "1m"))["schedules"] == []
    missing = str(uuid4())
    assert missing in await said(capsys, "pause", missing, code=1)
    for command in (["list"], ["show", name]):
        assert await asyncio.to_thread(main, ["schedules", *command]) == 0
        assert "news" in capsys.readouterr().out

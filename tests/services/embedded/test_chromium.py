import asyncio
import os
from pathlib import Path

import pytest

from services.embedded import chromium

PAGE = "data:text/html,<title>x</title><script>document.write(6*7)</script>"


async def test_the_unpacked_browser_runs_from_its_folder(tmp_path: Path) -> None:
    folder = await chromium.unpacked(tmp_path / "apt.log")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom", PAGE]
    process = await asyncio.create_subprocess_exec(
        folder / "chromium", *flags, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    assert b"42" in output
    assert os.access(folder / "chromium", os.X_OK)


async def test_none_is_fetched_where_the_machine_has_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chromium, "ON_THE_MACHINE", ("sh",))
    assert await chromium.wanted(tmp_path / "apt.log") == ""

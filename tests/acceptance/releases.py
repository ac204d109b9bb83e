"""The code of another release, beside this one."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from tests.acceptance.operators import CHECKOUT

OURS = ("agent", "api", "migrations", "services", "worker")
INSTALLED = "f43a73483a87e276c3b41a4326282a5ca5c1de65"
"""The commit of the release that installations run; whoever cuts one puts the one before here (docs/upgrading.md)."""


def unpack(commit: str, folder: Path) -> Path:
    """The code of `commit` in `folder`. It runs on the packages that are installed here.

    Raises: AssertionError when this clone does not have the commit: it must be a full one.
    """
    archive = subprocess.run(["git", "archive", commit, *OURS], cwd=CHECKOUT, capture_output=True)
    assert archive.returncode == 0, f"this clone has no commit {commit}: {archive.stderr.decode()}"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


async def migrate(checkout: Path, database_url: str) -> None:
    """Bring the schema to where the code in `checkout` wants it, as an operator does."""
    env = {**os.environ, "DATABASE_URL": database_url, "PYTHONPATH": str(checkout)}
    argv = [sys.executable, "-m", "migrations"]
    await asyncio.to_thread(subprocess.run, argv, cwd=checkout, env=env, check=True, capture_output=True)


def newest_migration(checkout: Path) -> str:
    """The revision that `migrate` brings a database to."""
    return max(path.stem.partition("_")[0] for path in (checkout / "migrations/versions").glob("0*.py"))

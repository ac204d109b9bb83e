"""A test that cannot fail proves nothing: each mechanism is broken in a copy, and its test has to notice."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.sabotage import BREAKS, CHECKOUT, Break, table

COPIED = ("agent", "api", "migrations", "services", "tests", "worker")
LANE = "2"
"""The stores of the tests that run beside this one are not theirs."""
FAILED_TESTS = 1
"""Pytest's exit code when it ran and tests failed; other codes mean that it did not get so far."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in COPIED:
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "alembic.ini", ".env.example"):
        if (CHECKOUT / file).exists():
            shutil.copy(CHECKOUT / file, tmp_path)
    return tmp_path


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.what)
def test_every_break_still_fits_the_code_and_names_a_test(broken: Break, tmp_path: Path) -> None:
    (tmp_path / broken.file).parent.mkdir(parents=True)
    shutil.copy(CHECKOUT / broken.file, tmp_path / broken.file)
    broken.apply(tmp_path)
    file, _, name = broken.test.partition("::")
    assert re.search(rf"def {name.partition('[')[0]}\(", (CHECKOUT / file).read_text())


def test_the_list_of_breaks_is_the_one_that_is_published() -> None:
    assert table() in (CHECKOUT / "docs" / "reliability.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.what)
def test_a_broken_mechanism_is_noticed(broken: Break, copy: Path) -> None:
    broken.apply(copy)
    names = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", broken.test],
        cwd=copy,
        env={**names, "PYTHONPATH": str(copy), "TEST_LANE": LANE},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == FAILED_TESTS, ran.stdout[-3000:] + ran.stderr[-2000:]

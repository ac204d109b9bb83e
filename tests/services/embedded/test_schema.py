"""Migrations are run when there are new ones, and only then."""

from pathlib import Path

import pytest

from services.embedded import schema


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(schema, "CHECKOUT", tmp_path)
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    return tmp_path


def test_a_new_database_is_not_current(checkout: Path) -> None:
    assert not schema.is_current(checkout)


def test_a_migrated_database_is_current_until_a_migration_is_added_or_changed(checkout: Path) -> None:
    versions = checkout / "migrations" / "versions"
    schema.mark_current(checkout)
    assert schema.is_current(checkout)
    (versions / "0002_more.py").write_text("one")
    assert not schema.is_current(checkout)
    schema.mark_current(checkout)
    (versions / "0002_more.py").write_text("two")
    assert not schema.is_current(checkout)

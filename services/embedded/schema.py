"""Which migrations an embedded database has had, so that a start without new ones need not load Alembic (1.5 s)."""

import hashlib
from pathlib import Path

from services.embedded.environment import CHECKOUT

MARK = "longrun-migrations"  # beside PG_VERSION: it comes and goes with the data


def fingerprint() -> str:
    """A hash of every source file of the migrations."""
    digest = hashlib.sha256()
    for source in sorted((CHECKOUT / "migrations").rglob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def is_current(data: Path) -> bool:
    mark = data / MARK
    return mark.exists() and mark.read_text() == fingerprint()


def mark_current(data: Path) -> None:
    (data / MARK).write_text(fingerprint())

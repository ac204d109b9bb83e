"""Packages of this folder for the system's python3, which knows nothing of the rest of Longrun."""

import io
import zipapp
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def packed(name: str) -> bytes:
    """The package as one archive (zipapp): `python3 ARCHIVE …` runs `main` of its module `main`."""
    archive = io.BytesIO()
    zipapp.create_archive(
        FOLDER,
        archive,
        filter=lambda path: path.parts[0] == name and path.suffix == ".py",
        main=f"{name}.main:main",
    )
    return archive.getvalue()

"""Python packages of ours for a sandbox, which has the machine's Python but not our environment."""

import io
import sysconfig
import tarfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def needed(name: str, found: set[str]) -> set[str]:
    """A distribution and all that it needs to run."""
    try:
        known = distribution(name)
    except PackageNotFoundError:
        return found
    if known.name not in found:
        found.add(known.name)
        for line in known.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name, found)
    return found


def packed(name: str) -> bytes:
    """Its files as a tar, for a machine with the same Python."""
    site, made = Path(sysconfig.get_path("purelib")), io.BytesIO()
    tops = {
        file.parts[0]
        for known in needed(name, set())
        for file in distribution(known).files or []
        if file.parts[0] not in ("..", "__pycache__")
    }
    with tarfile.open(fileobj=made, mode="w") as archive:
        for top in sorted(tops):
            archive.add(site / top, top)
    return made.getvalue()

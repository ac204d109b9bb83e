"""What a Debian package needs beside what the machine has installed."""

import asyncio
import subprocess
from collections.abc import Collection, Sequence

from services.embedded.console import EmbeddedError
from services.embedded.environment import for_a_tool

ONLY_DEPENDS = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
DEEPEST = 20


async def missing(packages: Sequence[str], without: Collection[str], options: Sequence[str]) -> list[str]:
    """`packages` and all that they need and the machine has not, but for `without` and what only that needs.

    Raises: EmbeddedError when apt does not know one of them.
    """
    listed = await output(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\\n"])
    here = {name for state, name in (line.split() for line in listed.splitlines()) if state == "installed"}
    found, new = list(packages), list(packages)
    for _ in range(DEEPEST):
        told = await output(["apt-cache", *options, *ONLY_DEPENDS, "depends", *new])
        needed = [chosen(each, here) for each in alternatives(told)]
        new = [name for name in dict.fromkeys(needed) if name and name not in {*found, *without, *here}]
        if not new:
            break
        found += new
    return found


def alternatives(told: str) -> list[list[str]]:
    """What `apt-cache depends` lists: for each need the packages of which one is enough."""
    found: list[list[str]] = [[]]
    for line in told.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind in ("Depends", "PreDepends", "|Depends", "|PreDepends"):
            found[-1].append(name.strip())
            if not kind.startswith("|"):
                found.append([])
    return found


def chosen(any_of: Sequence[str], here: Collection[str]) -> str:
    """The first of them, or none where one is installed or all are names of what others provide."""
    if any(name in here for name in any_of):
        return ""
    return next((name for name in any_of if not name.startswith("<")), "")


async def output(argv: Sequence[str]) -> str:
    done = await asyncio.to_thread(
        subprocess.run, argv, env=for_a_tool(), capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise EmbeddedError(f"{argv[0]} failed: {done.stderr.strip()[-300:]}")
    return str(done.stdout)

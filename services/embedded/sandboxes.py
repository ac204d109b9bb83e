"""What the sandboxes of one instance need: bubblewrap, slirp4netns for a network, a folder, an end when it stops."""

import shutil
import signal
from pathlib import Path

from services.embedded import chromium, debian
from services.embedded.console import Console, EmbeddedError
from services.embedded.environment import CHECKOUT, Given
from services.embedded.state import State
from services.sandbox import places

CACHE = CHECKOUT / ".longrun" / "cache"


async def prepare(console: Console, state: State, given: Given) -> dict[str, str]:
    """Find or unpack what runs them; the names by which our processes find it and the folder of the sandboxes.

    Without it everything else still works: what needs a sandbox, or a network in one, is then refused.
    """
    names = {"SANDBOX_DIR": given.sandbox_dir or str(folder_of(state))}
    try:
        names["SANDBOX_BWRAP"] = given.sandbox_bwrap or installed() or str(await unpacked(state))
    except EmbeddedError as error:
        console.say(f"  sandbox    none, tools that run something are refused: {error}")
    try:
        if given.sandbox_network:
            names["SANDBOX_SLIRP"] = given.sandbox_slirp or await slirp(state.log("apt"))
    except EmbeddedError as error:
        console.say(f"  sandbox    none with a network: {error}")
    try:
        if browser := given.sandbox_browser or await chromium.wanted(state.log("apt")):
            names["SANDBOX_BROWSER"] = browser
    except EmbeddedError as error:
        console.say(f"  sandbox    none with a browser: {error}")
    return names


def installed() -> str:
    return shutil.which("bwrap") or ""


async def slirp(log: Path) -> str:
    """The machine's slirp4netns, or Debian's. Raises: EmbeddedError when the packages cannot be fetched."""
    if found := shutil.which("slirp4netns"):
        return found
    root = await debian.unpack(["slirp4netns", "libslirp0"], CACHE / "slirp4netns", log)
    return str(root / "usr/bin/slirp4netns")


async def unpacked(state: State) -> Path:
    """Raises: EmbeddedError when the package cannot be fetched."""
    root = await debian.unpack(["bubblewrap"], CACHE / "bubblewrap", state.log("apt"))
    return root / "usr/bin/bwrap"


def folder_of(state: State) -> Path:
    return state.folder / "sandboxes"


def end_all(state: State) -> None:
    """End the sandboxes of this state folder; their files stay."""
    found = list(places.all_in(folder_of(state)).values())
    for place in found:
        place.signal(signal.SIGTERM)
    for place in found:
        place.end()

"""Debian's Chromium without windows, unpacked with what it needs: for sandboxes, and for tests of pages of ours."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from services.embedded import debian, dependencies
from services.embedded.environment import CHECKOUT

TARGET = CHECKOUT / ".longrun" / "cache" / "chromium"
PACKAGES = ("chromium-headless-shell", "chromium-common", "fonts-liberation")
UNUSED = ("x11-utils", "xdg-utils")
"""They are needed for windows, and need 100 MB themselves."""
ON_THE_MACHINE = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SURPLUS = ("usr/share/doc", "usr/lib/chromium/libVkLayer_khronos_validation.so")
LAUNCHER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
for folder in "$here"/usr/lib/*-linux-gnu "$here"/usr/lib/*-linux-gnu/pulseaudio; do
    LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
done
export LD_LIBRARY_PATH FONTCONFIG_FILE="$here/fonts.conf"
exec "$here/usr/lib/chromium/chromium-headless-shell" "$@"
"""
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir prefix="relative">usr/share/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
"""


async def wanted(log: Path) -> str:
    """The folder of an unpacked Chromium, where Playwright is installed and the machine has no Chromium; else empty.

    Raises: EmbeddedError when it cannot be fetched.
    """
    if importlib.util.find_spec("playwright") is None or any(map(shutil.which, ON_THE_MACHINE)):
        return ""
    return str(await unpacked(log))


async def unpacked(log: Path) -> Path:
    """The folder; `chromium` in it starts the browser, here or wherever the folder is mounted. About 100 MB to fetch.

    Raises: EmbeddedError when it cannot be fetched.
    """
    return await debian.unpack(PACKAGES, TARGET, log, adapt=complete, resolve=resolve)


async def resolve(packages: Sequence[str], options: Sequence[str]) -> Sequence[str]:
    return await dependencies.missing(packages, UNUSED, options)


def complete(unpacking: Path, _target: Path) -> None:
    for name in SURPLUS:
        path = unpacking / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (unpacking / "fonts.conf").write_text(FONTS)
    launcher = unpacking / "chromium"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)

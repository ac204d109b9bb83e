"""Paths as callers name them."""

import os
from contextlib import suppress

from .wire import Failed

WORKSPACE = "/workspace"


def resolve(path: str) -> str:
    return os.path.normpath(os.path.join(WORKSPACE, path))


def inside(path: str) -> str:
    """The absolute path. Raises: Failed when it leaves the workspace; a link may, within the sandbox's own view."""
    resolved = resolve(path)
    if not passable(path) or (resolved != WORKSPACE and not resolved.startswith(WORKSPACE + "/")):
        raise Failed(f"{path!r} is not inside {WORKSPACE}")
    return resolved


def passable(text: str) -> bool:
    """Whether the kernel takes it: it holds neither a NUL nor half a character."""
    with suppress(UnicodeEncodeError):
        return b"\0" not in os.fsencode(text)
    return False

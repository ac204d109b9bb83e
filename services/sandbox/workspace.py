"""Paths as models and clients give them → absolute paths inside the workspace. Pure."""

from posixpath import join, normpath

from services.sandbox.protocol import WORKSPACE

MAX_PATH_BYTES = 4000


class BadPath(ValueError):
    """A path that nothing in the workspace can have; the text says why."""


def inside(path: str) -> str:
    """`notes.txt`, `./notes.txt` and `/workspace/notes.txt` are the same file. Raises: BadPath."""
    if "\0" in path or len(path.encode(errors="replace")) > MAX_PATH_BYTES:
        raise BadPath("This is no path: it holds a NUL or is too long.")
    absolute = normpath(join(WORKSPACE, path.strip()))
    if absolute != WORKSPACE and not absolute.startswith(f"{WORKSPACE}/"):
        raise BadPath(f"{path} is outside of {WORKSPACE}: only what is in there can be reached.")
    return absolute


def shown(path: str) -> str:
    """The path as people write it: from the workspace on."""
    return path.removeprefix(f"{WORKSPACE}/")

"""Tools for the files of the workspace."""

from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import Field

from agent.context import Calling
from agent.tools.base import ToolFailed, tool
from agent.tools.lines import Lines
from services.sandbox import workspace
from services.sandbox.protocol import WORKSPACE, FileInfo, Sandbox
from services.sandbox.workspace import BadPath

PIECE_BYTES = 256 * 1024
MAX_EDITED_BYTES = 5_000_000
MAX_LISTED = 1000

FilePath = Annotated[str, Field(min_length=1, description="Path in the workspace, such as src/main.py.")]
Contents = Annotated[str, Field(description="The whole text of the file.")]
Permissions = Annotated[str, Field(pattern="^[0-7]{3}$", description="As chmod takes them, such as 755.")]


def in_workspace(path: str) -> str:
    """Raises: ToolFailed."""
    try:
        return workspace.inside(path)
    except BadPath as error:
        raise ToolFailed(str(error)) from error


async def existing(sandbox: Sandbox, path: str) -> FileInfo:
    """Raises: ToolFailed when there is no such file, or it is a folder."""
    found = await sandbox.stat_file(path)
    if found is None:
        raise ToolFailed(f"There is no file {path}.")
    if found.is_dir:
        raise ToolFailed(f"{path} is a folder; list_files shows what is in it.")
    return found


async def pieces(sandbox: Sandbox, path: str) -> AsyncIterator[bytes]:
    offset = 0
    while data := await sandbox.read_file(path, offset=offset, limit=PIECE_BYTES):
        yield data
        offset += len(data)


@tool(body="file_contents", repeatable=True)
async def create_file(
    calling: Calling, file_path: FilePath, file_contents: Contents, permissions: Permissions = "644"
) -> str:
    """Create a text file in the workspace, with the folders it is in. It must not exist yet."""
    path, data = in_workspace(file_path), file_contents.encode(errors="replace")
    sandbox = await calling.ctx.sandbox()
    async with calling.ctx.editing:
        found = await sandbox.stat_file(path)
        if found and not (found.size == len(data) and await holds(sandbox, found, data)):
            raise ToolFailed(f"{path} exists already: change it with str_replace or full_file_rewrite.")
        await sandbox.write_file(path, data, mode=int(permissions, 8))
    return f"Created {path} ({len(data)} bytes)."


async def holds(sandbox: Sandbox, found: FileInfo, data: bytes) -> bool:
    return not found.is_dir and await sandbox.read_file(found.path, limit=len(data) + 1) == data


@tool(body="file_contents", repeatable=True)
async def full_file_rewrite(
    calling: Calling, file_path: FilePath, file_contents: Contents, permissions: Permissions = "644"
) -> str:
    """Replace the whole text of an existing file. Use str_replace for a small change."""
    path, data = in_workspace(file_path), file_contents.encode(errors="replace")
    sandbox = await calling.ctx.sandbox()
    async with calling.ctx.editing:
        await existing(sandbox, path)
        await sandbox.write_file(path, data, mode=int(permissions, 8))
    return f"Rewrote {path} ({len(data)} bytes)."


@tool()
async def str_replace(
    calling: Calling,
    file_path: FilePath,
    old_str: Annotated[str, Field(min_length=1, description="The exact text to replace; it must occur once.")],
    new_str: Annotated[str, Field(description="The text to put in its place.")],
) -> str:
    """Replace a piece of text in a file. Give enough of the lines around it to make it unique."""
    path = in_workspace(file_path)
    sandbox = await calling.ctx.sandbox()
    async with calling.ctx.editing:
        found = await existing(sandbox, path)
        text = await whole_text(sandbox, found)
        line = only_line_of(text, old_str, path)
        changed = text.replace(old_str, new_str).encode(errors="replace")
        await sandbox.write_file(path, changed, mode=None)
    return f"Replaced the text at line {line} of {path}."


async def whole_text(sandbox: Sandbox, found: FileInfo) -> str:
    """Raises: ToolFailed when it is too large or no text."""
    data = b"" if found.size > MAX_EDITED_BYTES else await sandbox.read_file(found.path, limit=MAX_EDITED_BYTES + 1)
    if max(found.size, len(data)) > MAX_EDITED_BYTES:
        raise ToolFailed(f"{found.path} is too large to edit ({found.size} bytes): change it with a command.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ToolFailed(f"{found.path} is no UTF-8 text: change it with a command.") from error


def only_line_of(text: str, old: str, path: str) -> int:
    """The line on which the one occurrence begins. Raises: ToolFailed."""
    places = text.count(old)
    if places == 0:
        raise ToolFailed(f"old_str does not occur in {path}: read the file, and copy the text exactly.")
    if places > 1:
        raise ToolFailed(f"old_str occurs {places} times in {path}: give more of the lines around it.")
    return text.count("\n", 0, text.index(old)) + 1


@tool(body="file_path", repeatable=True)
async def read_file(
    calling: Calling,
    file_path: FilePath,
    start_line: Annotated[int, Field(ge=1, description="The first line to read.")] = 1,
    end_line: Annotated[int | None, Field(ge=1, description="The last line to read; to the end without it.")] = None,
) -> str:
    """Read a text file of the workspace, or a range of its lines."""
    if end_line is not None and end_line < start_line:
        raise ToolFailed(f"end_line {end_line} is before start_line {start_line}.")
    path = in_workspace(file_path)
    sandbox = await calling.ctx.sandbox()
    found = await existing(sandbox, path)
    lines = await read_lines(sandbox, found, Lines(start_line, end_line))
    if lines.taken:
        return lines.text
    if found.size == 0:
        return "[the file is empty]"
    raise ToolFailed(f"{path} has no line {start_line}: it ends before.")


async def read_lines(sandbox: Sandbox, found: FileInfo, lines: Lines) -> Lines:
    """Raises: ToolFailed for what is no text."""
    async for data in pieces(sandbox, found.path):
        if b"\0" in data:
            raise ToolFailed(f"{found.path} is no text ({found.size} bytes); look at images with see_image.")
        lines.feed(data)
        if lines.full:
            break
    return lines


@tool(body="file_path")
async def delete_file(calling: Calling, file_path: FilePath) -> str:
    """Delete a file of the workspace, or a folder with all that is in it."""
    path = in_workspace(file_path)
    if path == WORKSPACE:
        raise ToolFailed("The workspace itself cannot be deleted.")
    sandbox = await calling.ctx.sandbox()
    async with calling.ctx.editing:
        await sandbox.delete_file(path)
    return f"Deleted {path}."


@tool(body="path", repeatable=True)
async def list_files(
    calling: Calling,
    path: Annotated[str, Field(description="A folder of the workspace.")] = WORKSPACE,
    depth: Annotated[int, Field(ge=1, le=10, description="How many levels of folders to show.")] = 1,
) -> str:
    """List the files and folders of the workspace."""
    sandbox = await calling.ctx.sandbox()
    found = await sandbox.list_files(in_workspace(path), depth=depth, limit=MAX_LISTED)
    listed = [f"{each.path}/" if each.is_dir else f"{each.path}  {each.size} bytes" for each in found]
    if not listed:
        return "[the folder is empty]"
    more = [f"[there may be more: only {MAX_LISTED} are shown]"] if len(found) >= MAX_LISTED else []
    return "\n".join([*listed, *more])


FILES = (create_file, read_file, str_replace, full_file_rewrite, delete_file, list_files)

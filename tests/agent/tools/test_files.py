"""The file tools in a real sandbox."""

from asyncio import gather, timeout
from datetime import UTC, datetime

import pytest

from agent.context import RunContext
from agent.tools import files, lines
from agent.tools.base import BadArguments, ToolFailed
from services.sandbox.protocol import FileInfo, Sandbox, SandboxFailed
from tests.agent.tools.conftest import use


async def test_a_file_is_written_read_changed_and_deleted(ctx: RunContext) -> None:
    made = await use(ctx, files.create_file, file_path="src/main.py", file_contents="one\ntwo\nthree\n")
    assert made == "Created /workspace/src/main.py (14 bytes)."
    assert await use(ctx, files.read_file, file_path="/workspace/src/main.py") == "one\ntwo\nthree\n"
    changed = await use(ctx, files.str_replace, file_path="src/main.py", old_str="two", new_str="zwei\ndrei")
    assert changed == "Replaced the text at line 2 of /workspace/src/main.py."
    assert await use(ctx, files.read_file, file_path="src/main.py", start_line=2, end_line=3) == "zwei\ndrei\n"
    await use(ctx, files.full_file_rewrite, file_path="src/main.py", file_contents="new")
    assert await use(ctx, files.read_file, file_path="src/main.py") == "new"
    await use(ctx, files.delete_file, file_path="src/main.py")
    with pytest.raises(ToolFailed, match=r"no file /workspace/src/main\.py"):
        await use(ctx, files.read_file, file_path="src/main.py")


async def test_a_file_that_exists_is_not_created_over_another(ctx: RunContext) -> None:
    await use(ctx, files.create_file, file_path="a.txt", file_contents="mine")
    with pytest.raises(ToolFailed, match="exists already"):
        await use(ctx, files.create_file, file_path="a.txt", file_contents="yours")
    assert await use(ctx, files.read_file, file_path="a.txt") == "mine"


async def test_a_creation_whose_result_was_lost_can_be_repeated(ctx: RunContext) -> None:
    for _ in range(2):
        await use(ctx, files.create_file, file_path="a.txt", file_contents="mine")
    assert await use(ctx, files.read_file, file_path="a.txt") == "mine"


async def test_permissions_are_set_and_outlive_a_change(ctx: RunContext, sandbox: Sandbox) -> None:
    await use(ctx, files.create_file, file_path="run", file_contents="#!/bin/sh\necho one\n", permissions="755")
    assert (await sandbox.exec("./run")).output == b"one\n"
    await use(ctx, files.str_replace, file_path="run", old_str="one", new_str="two")
    assert (await sandbox.exec("./run")).output == b"two\n"


async def test_a_text_that_is_not_there_or_not_unique_is_not_replaced(ctx: RunContext) -> None:
    await use(ctx, files.create_file, file_path="a.txt", file_contents="aa b aa")
    with pytest.raises(ToolFailed, match="does not occur"):
        await use(ctx, files.str_replace, file_path="a.txt", old_str="c", new_str="d")
    with pytest.raises(ToolFailed, match="occurs 2 times"):
        await use(ctx, files.str_replace, file_path="a.txt", old_str="aa", new_str="d")
    with pytest.raises(BadArguments, match="old_str"):
        await use(ctx, files.str_replace, file_path="a.txt", old_str="", new_str="d")
    assert await use(ctx, files.read_file, file_path="a.txt") == "aa b aa"


async def test_changes_that_are_made_at_once_are_all_kept(ctx: RunContext) -> None:
    words = [f"word{number}" for number in range(10)]
    await use(ctx, files.create_file, file_path="a.txt", file_contents=" ".join(words))
    changes = (use(ctx, files.str_replace, file_path="a.txt", old_str=word, new_str=word.upper()) for word in words)
    await gather(*changes)
    assert await use(ctx, files.read_file, file_path="a.txt") == " ".join(words).upper()


async def test_what_is_no_text_is_neither_read_nor_edited(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/a.bin", b"\x7fELF\0\0" * 100)
    await sandbox.write_file("/workspace/b.txt", "café".encode("latin-1"))
    with pytest.raises(ToolFailed, match=r"a\.bin is no text"):
        await use(ctx, files.read_file, file_path="a.bin")
    with pytest.raises(ToolFailed, match=r"b\.txt is no UTF-8 text"):
        await use(ctx, files.str_replace, file_path="b.txt", old_str="c", new_str="d")
    assert await use(ctx, files.read_file, file_path="b.txt") == "caf�"


async def test_a_large_file_is_read_by_parts(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.exec("seq 1 1000000 > many.txt")
    first = await use(ctx, files.read_file, file_path="many.txt")
    assert len(first) < lines.MAX_BYTES + 100
    assert first.startswith("1\n2\n3\n")
    assert "the file goes on" in first
    assert await use(ctx, files.read_file, file_path="many.txt", start_line=999_999) == "999999\n1000000\n"
    with pytest.raises(ToolFailed, match="no line 1000001"):
        await use(ctx, files.read_file, file_path="many.txt", start_line=1_000_001)
    with pytest.raises(ToolFailed, match="too large to edit"):
        await use(ctx, files.str_replace, file_path="many.txt", old_str="7", new_str="8")


async def test_an_empty_file_and_a_folder_are_told_as_what_they_are(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/sub/empty", b"")
    assert await use(ctx, files.read_file, file_path="sub/empty") == "[the file is empty]"
    with pytest.raises(ToolFailed, match="sub is a folder"):
        await use(ctx, files.read_file, file_path="sub")
    with pytest.raises(ToolFailed, match="end_line 1 is before start_line 2"):
        await use(ctx, files.read_file, file_path="sub/empty", start_line=2, end_line=1)


async def test_files_are_listed_as_deep_as_asked(ctx: RunContext, sandbox: Sandbox) -> None:
    assert await use(ctx, files.list_files) == "[the folder is empty]"
    await sandbox.write_file("/workspace/a.txt", b"12345")
    await sandbox.write_file("/workspace/sub/b.txt", b"")
    assert sorted((await use(ctx, files.list_files)).splitlines()) == ["/workspace/a.txt  5 bytes", "/workspace/sub/"]
    assert "/workspace/sub/b.txt  0 bytes" in await use(ctx, files.list_files, depth=2)
    assert await use(ctx, files.list_files, path="sub") == "/workspace/sub/b.txt  0 bytes"


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "/workspace/../etc/passwd"])
async def test_a_path_outside_of_the_workspace_is_refused(ctx: RunContext, path: str) -> None:
    for tool in (files.read_file, files.delete_file):
        with pytest.raises(ToolFailed, match="outside of /workspace"):
            await use(ctx, tool, file_path=path)
    with pytest.raises(ToolFailed, match="outside of /workspace"):
        await use(ctx, files.create_file, file_path=path, file_contents="x")


async def test_a_folder_is_deleted_with_what_is_in_it_but_not_the_workspace(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.write_file("/workspace/sub/deep/b.txt", b"x")
    await use(ctx, files.delete_file, file_path="sub")
    assert await sandbox.stat_file("/workspace/sub") is None
    with pytest.raises(ToolFailed, match="workspace itself"):
        await use(ctx, files.delete_file, file_path="/workspace")
    with pytest.raises(SandboxFailed, match="sub"):
        await use(ctx, files.delete_file, file_path="sub")


async def test_a_profile_that_talks_or_hangs_spoils_no_change(ctx: RunContext, sandbox: Sandbox) -> None:
    await sandbox.exec("echo one > run; chmod 755 run; echo 'echo hello; sleep 30' > .bash_profile")
    async with timeout(10):
        await use(ctx, files.str_replace, file_path="run", old_str="one", new_str="two")
    await sandbox.delete_file(".bash_profile")
    assert (await sandbox.exec("stat -c %a run; cat run")).output == b"755\ntwo\n"


async def test_a_file_that_grows_while_it_is_changed_loses_nothing(
    ctx: RunContext, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sandbox.write_file("log", b"one " + b"x" * 200)
    monkeypatch.setattr(files, "MAX_EDITED_BYTES", 100)
    before = FileInfo("/workspace/log", False, 50, datetime.now(UTC))
    with pytest.raises(ToolFailed, match="too large to edit"):
        await files.whole_text(sandbox, before)

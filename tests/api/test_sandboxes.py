"""The files of a project's sandbox, over the routes: a real sandbox behind them."""

import os
from pathlib import Path
from urllib.parse import unquote
from uuid import UUID, uuid4

import pytest
from httpx2 import Response

from services.sandbox.protocol import SandboxProvider
from services.settings import ApiSettings, Settings
from tests.api.conftest import Person
from tests.waiting import eventually

MIB = 1024 * 1024


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    small = ApiSettings(max_files=3, max_file_bytes=3 * MIB, max_upload_bytes=5 * MIB, max_body_bytes=4096)
    sandbox = settings.sandbox.model_copy(update={"folder": str(tmp_path / "sandboxes")})
    return settings.model_copy(update={"api": small, "sandbox": sandbox})


@pytest.fixture
async def files(ann: Person, sandboxes: SandboxProvider) -> str:
    """The address of the files of a project of hers."""
    _, project_id = await ann.make_thread()
    return f"/sandboxes/{project_id}/files"


async def put(person: Person, files: str, path: str, data: bytes) -> Response:
    return await person.post(files, data={"path": path}, files={"file": ("chosen.txt", data)})


async def get(person: Person, files: str, path: str) -> Response:
    return await person.get(f"{files}/content", params={"path": path})


def wrong_field(answer: Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [said["loc"][-1] for said in answer.json()["detail"]]


async def test_a_file_is_put_listed_read_and_deleted(ann: Person, files: str) -> None:
    data = os.urandom(2 * MIB + 3)
    put_there = await put(ann, files, "/workspace/sub/data.bin", data)
    assert put_there.json() == {"status": "success", "path": "/workspace/sub/data.bin", "created": True}
    assert (await put(ann, files, "sub/data.bin", data)).json()["created"] is False
    (folder,) = (await ann.get(files)).json()["files"]
    assert (folder["name"], folder["path"], folder["is_dir"]) == ("sub", "/workspace/sub", True)
    listed = (await ann.get(files, params={"path": "/workspace/sub"})).json()
    (file,) = listed["files"]
    assert set(file) == {"name", "path", "is_dir", "size", "mod_time"}
    assert (file["name"], file["size"], file["is_dir"], listed["truncated"]) == ("data.bin", len(data), False, False)
    assert (await get(ann, files, "sub/data.bin")).content == data
    deleted = await ann.delete(files, params={"path": "sub"})
    assert deleted.json() == {"status": "success", "path": "/workspace/sub", "deleted": True}
    assert (await ann.get(files)).json()["files"] == []


async def test_a_file_is_an_attachment_that_no_browser_runs(ann: Person, files: str) -> None:
    name = 'a "b"; c\r\nX: y 报告.html'
    await put(ann, files, name, b"<script>alert(1)</script>")
    answer = await get(ann, files, name)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    kind, _, named = answer.headers["content-disposition"].partition("; filename*=UTF-8''")
    assert (kind, unquote(named)) == ("attachment", name)
    assert answer.headers["content-length"] == "25"


async def test_an_empty_file_is_a_file(ann: Person, files: str) -> None:
    await put(ann, files, "empty", b"")
    answer = await get(ann, files, "empty")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_file_is_called_as_it_came_when_no_path_is_named(ann: Person, files: str) -> None:
    put_there = await ann.post(files, files={"file": ("../my notes.txt", b"x")})
    assert put_there.json()["path"] == "/workspace/my notes.txt"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a\0b", "x" * 5000])
async def test_a_path_that_is_not_in_the_workspace_is_refused_by_name(ann: Person, files: str, path: str) -> None:
    for answer in (
        await ann.get(files, params={"path": path}),
        await get(ann, files, path),
        await ann.delete(files, params={"path": path}),
        *([await put(ann, files, path, b"x")] if len(path) < 4000 else []),
    ):
        assert wrong_field(answer) == ["path"]


async def test_what_a_path_cannot_mean_is_refused_by_name(ann: Person, files: str) -> None:
    await put(ann, files, "sub/file", b"x")
    assert wrong_field(await get(ann, files, "sub")) == ["path"]
    assert wrong_field(await ann.get(files, params={"path": "sub/file"})) == ["path"]
    assert wrong_field(await put(ann, files, "sub", b"x" * MIB)) == ["path"]
    assert wrong_field(await put(ann, files, "sub/file/below", b"x")) == ["path"]
    assert wrong_field(await ann.delete(files, params={"path": "/workspace"})) == ["path"]
    assert wrong_field(await ann.get(f"{files}/content")) == ["path"]
    assert wrong_field(await ann.post(files, data={"path": "x"})) == ["file"]


async def test_what_is_not_there_is_404(ann: Person, files: str) -> None:
    for answer in (
        await ann.get(files, params={"path": "absent"}),
        await get(ann, files, "absent"),
        await ann.delete(files, params={"path": "absent"}),
    ):
        assert (answer.status_code, answer.json()) == (404, {"detail": "File not found."})


async def test_a_link_out_of_the_workspace_leads_nowhere_on_the_host(
    ann: Person, files: str, sandboxes: SandboxProvider, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the host")
    sandbox = await sandboxes.open(UUID(files.split("/")[2]))
    await sandbox.exec(f"ln -s {tmp_path}/secret link; ln -s /etc/shadow shadow")
    for name in ("link", "shadow"):
        assert (await get(ann, files, name)).status_code == 404


async def test_a_file_that_is_too_large_is_refused_with_the_limit(ann: Person, files: str) -> None:
    answer = await put(ann, files, "large", b"x" * (3 * MIB + 1))
    assert answer.status_code == 413
    assert str(3 * MIB) in answer.json()["detail"]
    assert (await ann.get(files)).json()["files"] == []


async def test_anybody_reads_the_files_of_a_public_project_and_only_the_owner_writes(
    ann: Person, bob: Person, files: str
) -> None:
    await put(ann, files, "notes.txt", b"public")
    await ann.patch(f"/projects/{files.split('/')[2]}", json={"is_public": True})
    assert (await get(bob, files, "notes.txt")).content == b"public"
    assert [file["name"] for file in (await bob.get(files)).json()["files"]] == ["notes.txt"]
    assert (await put(bob, files, "notes.txt", b"mine")).status_code == 403
    assert (await bob.delete(files, params={"path": "notes.txt"})).status_code == 403
    assert (await get(ann, files, "notes.txt")).content == b"public"


async def test_no_sandbox_is_made_for_what_is_not_the_callers(bob: Person, files: str, tmp_path: Path) -> None:
    assert (await bob.get(files)).status_code == (await bob.get(f"/sandboxes/{uuid4()}/files")).status_code == 404
    assert not (tmp_path / "sandboxes").exists()


async def test_a_deleted_project_takes_its_sandbox_along(ann: Person, files: str, tmp_path: Path) -> None:
    await put(ann, files, "notes.txt", b"x")
    folder = tmp_path / "sandboxes" / files.split("/")[2]
    assert folder.exists()
    await ann.delete(f"/projects/{folder.name}")
    await eventually(lambda: not folder.exists())


class TestWithoutIsolation:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        broken = settings.sandbox.model_copy(update={"bwrap": "/nowhere/bwrap"})
        return settings.model_copy(update={"sandbox": broken})

    async def test_the_routes_say_that_it_is_missing_and_nothing_is_written_bare(
        self, ann: Person, files: str, tmp_path: Path
    ) -> None:
        for answer in (await ann.get(files), await get(ann, files, "a"), await put(ann, files, "a", b"x")):
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
            assert "bubblewrap is missing" in answer.json()["detail"]
        assert not list((tmp_path / "sandboxes").glob("*/workspace/*"))


async def test_what_an_agent_left_in_its_workspace_breaks_neither_listing_nor_download(
    ann: Person, files: str, sandboxes: SandboxProvider
) -> None:
    sandbox = await sandboxes.open(UUID(files.split("/")[2]))
    await sandbox.exec(r"mkfifo fifo; touch $'caf\xe9'; ln -s loop loop; ln -s nowhere dangling; ln -s /dev/zero zero")
    listed = (await ann.get(files)).json()["files"]
    assert sorted(each["name"] for each in listed) == ["caf\ufffd", "dangling", "fifo", "loop", "zero"]
    for name in ("fifo", "zero"):
        assert wrong_field(await get(ann, files, name)) == ["path"]
    assert wrong_field(await get(ann, files, "loop")) == ["path"]
    for name in ("fifo", "zero"):
        assert (await ann.delete(files, params={"path": name})).status_code == 200, name

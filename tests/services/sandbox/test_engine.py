"""What goes wrong with a Docker engine, against one that is scripted: HTTP over a Unix socket."""

import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest

from services.sandbox import container, docker, engine, places
from services.sandbox.docker import Docker
from services.sandbox.engine import Engine, unframed
from services.sandbox.protocol import SandboxFailed, SandboxUnavailable, Spec
from services.settings import SandboxSettings
from tests.waiting import PATIENT

Script = dict[str, tuple[int, object] | Callable[[], tuple[int, object]]]


class Scripted:
    """Answers by the method and the last part of the path; everything else is 204."""

    def __init__(self, path: Path) -> None:
        self.script: Script = {}
        self.asked: list[str] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                what = f"{self.command} {self.path.partition('?')[0].rpartition('/')[2]}"
                scripted.asked.append(what)
                given = scripted.script.get(what, (204, None))
                status, body = given() if callable(given) else given
                content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingUnixStreamServer(str(path), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="engine-") as made:
        yield Path(made)


@pytest.fixture
def scripted(folder: Path) -> Iterator[Scripted]:
    made = Scripted(folder / "docker.sock")
    yield made
    made.close()


@pytest.fixture
def provider(folder: Path) -> Docker:
    return Docker(SandboxSettings(folder=str(folder / "boxes"), docker_url=f"unix://{folder}/docker.sock", image="box"))


async def test_without_a_socket_the_setting_is_named(provider: Docker, project_id: UUID) -> None:
    with pytest.raises(SandboxUnavailable, match=r"no Docker engine answers at unix://.*SANDBOX_DOCKER_URL"):
        await provider.open(project_id)


async def test_an_engine_that_is_silent_is_given_up(
    provider: Docker, scripted: Scripted, project_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang() -> tuple[int, object]:
        released.wait(PATIENT)
        return 204, None

    monkeypatch.setattr(engine, "ANSWER_WITHIN", 0.2)
    scripted.script[f"DELETE sandbox_{project_id}"] = hang
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        await provider.open(project_id)
    released.set()


async def test_an_image_that_is_not_there_is_named(provider: Docker, scripted: Scripted, project_id: UUID) -> None:
    scripted.script["POST create"] = (404, {"message": "No such image: box"})
    with pytest.raises(SandboxUnavailable, match="no image box"):
        await provider.open(project_id)


@pytest.mark.parametrize("body", [{"message": "disk on fire"}, b"disk on fire\n"])
async def test_an_error_of_the_engine_is_passed_on_in_its_words(
    provider: Docker, scripted: Scripted, project_id: UUID, body: object
) -> None:
    scripted.script["POST create"] = (500, body)
    with pytest.raises(SandboxUnavailable, match=r"does not make the container \(500: disk on fire\)"):
        await provider.open(project_id)


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


def test_a_container_that_somebody_else_is_starting_is_waited_for_and_not_started_twice(
    provider: Docker, scripted: Scripted, project_id: UUID
) -> None:
    place, listeners = places.of(provider.root, project_id), list[socket.socket]()

    def conflict() -> tuple[int, object]:
        listeners.append(listening(place.folder / "s"))
        return 409, {"message": "the name is already in use"}

    scripted.script["POST create"] = conflict
    provider.start(place, Spec())
    assert "POST start" not in scripted.asked
    listeners[0].close()


def test_a_container_of_the_same_name_that_never_answers_is_named(
    provider: Docker, scripted: Scripted, project_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "START_WITHIN", 0.2)
    scripted.script["POST create"] = (409, {"message": "the name is already in use"})
    with pytest.raises(SandboxUnavailable, match=f"another container sandbox_{project_id}"):
        provider.start(places.of(provider.root, project_id), Spec())


def test_a_container_that_ends_at_once_says_what_it_said(
    provider: Docker, scripted: Scripted, project_id: UUID
) -> None:
    scripted.script["GET json"] = (200, {"State": {"Running": False, "ExitCode": 127}})
    scripted.script["GET logs"] = (200, b"\x02\0\0\0\0\0\0\x0epython3: gone\n")
    with pytest.raises(SandboxUnavailable, match=r"did not become ready \(python3: gone\)"):
        provider.start(places.of(provider.root, project_id), Spec())
    assert scripted.asked[-1] == f"DELETE sandbox_{project_id}"


def test_an_engine_that_does_not_see_our_folder_is_told_apart(
    provider: Docker, scripted: Scripted, project_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "START_WITHIN", 0.2)
    scripted.script["GET json"] = (200, {"State": {"Running": True, "ExitCode": 0}})
    with pytest.raises(SandboxUnavailable, match=r"must see .*/boxes under the same path"):
        provider.start(places.of(provider.root, project_id), Spec())


def test_a_link_in_place_of_the_agents_socket_is_never_followed_by_a_call(
    provider: Docker, scripted: Scripted, project_id: UUID, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = places.of(provider.root, project_id), listening(folder / "other")

    def plant() -> tuple[int, object]:
        os.symlink(folder / "other", place.folder / "run" / "s")
        return 204, None

    scripted.script["POST start"] = plant
    monkeypatch.setattr(docker, "is_socket", judged_late(docker.is_socket))
    with pytest.raises(SandboxUnavailable, match="something else than a socket"):
        provider.start(place, Spec())
    assert not (place.folder / "s").is_symlink()
    other.close()


def judged_late(is_socket: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """The first look still saw a socket: the link was put there just after."""
    looks = iter([True])
    return lambda path: next(looks, False) or is_socket(path)


def test_why_a_container_ended_is_told_once(provider: Docker, scripted: Scripted, project_id: UUID) -> None:
    place = places.of(provider.root, project_id)
    place.make()
    scripted.script["GET json"] = (200, {"State": {"Running": False, "ExitCode": 137, "OOMKilled": True}})
    assert "memory" in provider.ended_because(place)
    scripted.script["GET json"] = (404, {"message": "no such container"})
    assert provider.ended_because(place) == ""


def test_the_log_of_a_container_is_read_out_of_its_frames() -> None:
    assert unframed(b"\x01\0\0\0\0\0\0\x02a\n\x02\0\0\0\0\0\0\x01b") == "a\nb"
    assert unframed(b"") == ""


def test_a_network_is_given_only_when_it_is_opened() -> None:
    closed = container.configuration("box", 1, Spec(), 64, "/run", "v")
    opened = container.configuration("box", 1, Spec(network=True), 64, "/run", "v")
    assert (closed["NetworkDisabled"], opened["NetworkDisabled"]) == (True, False)
    modes = [made["HostConfig"]["NetworkMode"] for made in (closed, opened)]  # type: ignore[index]
    assert modes == ["none", "bridge"]


async def test_a_project_may_close_the_network_that_the_operator_opened(
    provider: Docker, scripted: Scripted, project_id: UUID
) -> None:
    async def closed(_: UUID) -> bool:
        return False

    wanted: list[Spec] = []
    settings = provider.settings.model_copy(update={"network": True, "network_allowed": True})
    with patch.object(Docker, "start", lambda self, place, spec: wanted.append(spec)):
        for docker in (Docker(settings), Docker(settings, closed)):
            with pytest.raises(SandboxFailed):
                await docker.open(project_id)
    assert {spec.network for spec in wanted[: len(wanted) // 2]} == {True}
    assert {spec.network for spec in wanted[len(wanted) // 2 :]} == {False}


@pytest.mark.parametrize(("url", "base"), [("tcp://proxy:2375", "http://proxy:2375"), ("unix:///x", "http://docker")])
def test_an_engine_is_a_socket_or_a_proxy(url: str, base: str) -> None:
    assert Engine(url).base == base


def test_an_engine_that_cannot_be_spoken_to_is_refused_with_the_settings() -> None:
    with pytest.raises(ValueError, match="docker_url"):
        SandboxSettings(docker_url="ssh://elsewhere")


@pytest.fixture
def project_id() -> UUID:
    return uuid4()

"""The state folder."""

import socket
from pathlib import Path

import pytest

from services.embedded.console import EmbeddedError
from services.embedded.state import State, open_state, running_instance


def test_a_second_start_is_refused_and_names_the_first(state: State) -> None:
    state.announce(4711, "http://127.0.0.1:8000", {})
    with pytest.raises(EmbeddedError, match=r"already runs on .* \(pid 4711, http://127.0.0.1:8000\)"):
        open_state(state.folder)


def test_reset_is_refused_while_an_instance_runs(state: State) -> None:
    with pytest.raises(EmbeddedError, match="already runs"):
        open_state(state.folder, reset=True)
    assert (state.folder / "state.json").exists()


def test_reset_removes_our_data_and_nothing_else(folder: Path) -> None:
    first = open_state(folder)
    first.folder_named("valkey").joinpath("data").touch()
    (folder / "notes.txt").touch()
    first.close()
    second = open_state(folder, reset=True)
    assert second.password != first.password
    assert not (folder / "valkey").exists()
    assert (folder / "notes.txt").exists()
    second.close()


def test_secrets_are_kept_and_readable_by_their_owner_only(folder: Path) -> None:
    first = open_state(folder)
    first.close()
    second = open_state(folder)
    assert (second.jwt_secret, second.password) == (first.jwt_secret, first.password)
    assert (folder / "state.json").stat().st_mode & 0o077 == 0
    second.close()


def test_a_remembered_port_that_is_taken_is_replaced(folder: Path) -> None:
    first = open_state(folder)
    port = first.port("valkey")
    first.close()
    with socket.create_server(("127.0.0.1", port)):
        second = open_state(folder)
        assert second.port("valkey") != port
        second.close()


def test_no_instance_is_running_once_it_was_closed(folder: Path) -> None:
    state = open_state(folder)
    state.announce(4711, "http://127.0.0.1:8000", {})
    assert running_instance(folder)["pid"] == 4711
    state.close()
    with pytest.raises(EmbeddedError, match="no instance is running"):
        running_instance(folder)

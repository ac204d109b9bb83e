"""What `./dev` says about its own command line."""

import socket
import subprocess
from pathlib import Path

import pytest

from services.embedded.cli import HELP, main
from services.embedded.console import EmbeddedError
from services.embedded.environment import CHECKOUT, Given
from services.embedded.instance import refuse_production
from services.embedded.stores import Wanted
from tests.services.embedded.conftest import Dev, bare_environment


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["help"]) == 0
    assert capsys.readouterr().out == f"{HELP}\n{HELP}\n"


def test_an_unknown_command_is_an_error_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    assert "there is no command 'fly'; ./dev help lists them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--port", "0"], ["--port", "http"], ["--port", "70000"], ["--workers", "0"], ["--threads", "1"]]
)
def test_a_bad_number_is_refused_by_the_flags_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", *arguments])
    assert f"argument {arguments[0]}: {arguments[1]!r} is not a number from" in capsys.readouterr().err


def test_a_port_in_use_is_said_before_anything_starts(dev: Dev, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = dev("run", "--state", folder / "state", "--port", str(taken.getsockname()[1]))
        output, _ = process.communicate()
    assert process.returncode == 1
    assert "is in use (choose another with --port)" in output
    assert not (folder / "state" / "postgres").exists()


def test_an_address_that_is_not_ours_names_the_flag(dev: Dev, folder: Path) -> None:
    process = dev("run", "--state", folder / "state", "--host", "192.0.2.1")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "192.0.2.1" in output
    assert "--host" in output


def test_production_runs_on_no_server_of_ours() -> None:
    given = Given(environment="production", redis_url="redis://redis", broker="rabbitmq")
    with pytest.raises(EmbeddedError, match="DATABASE_URL and RABBITMQ_URL not set"):
        refuse_production(Wanted(given))
    refuse_production(
        Wanted(Given(environment="production", redis_url="redis://redis", database_url="postgresql://db"))
    )
    refuse_production(Wanted(Given()))


def test_a_token_needs_a_running_instance(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--state", str(folder)]) == 1
    assert "no instance is running on" in capsys.readouterr().err


def test_the_shell_part_passes_arguments_on() -> None:
    shell = subprocess.run(
        ["sh", "dev", "fly", "away"], cwd=CHECKOUT, env=bare_environment(), capture_output=True, text=True, check=False
    )
    assert shell.returncode == 2
    assert "there is no command 'fly'" in shell.stderr

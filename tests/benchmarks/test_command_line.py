"""What `./dev bench` says about its own command line."""

import shlex
from pathlib import Path

import pytest

from services.embedded.console import Console, EmbeddedError
from services.embedded.ports import pick
from services.embedded.state import open_state
from services.embedded.supervisor import Supervisor
from tests.benchmarks import chaos
from tests.benchmarks.__main__ import BENCHMARKS, main
from tests.benchmarks.command_line import command, parse
from tests.benchmarks.progress import Progress
from tests.benchmarks.session import Session
from tests.benchmarks.stop import BENCHMARK

Output = pytest.CaptureFixture[str]


def test_it_lists_the_benchmarks_with_a_line_each(capsys: Output) -> None:
    assert main([]) == main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == [benchmark.name for benchmark in BENCHMARKS] * 2


def test_an_unknown_benchmark_is_an_error_of_usage_with_the_list(capsys: Output) -> None:
    assert main(["fly"]) == 2
    said = capsys.readouterr().err
    assert "there is no benchmark 'fly'" in said
    assert "\n  stop " in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--stops", "0"], "--stops"),
        (["--stop", "3"], "--stop"),
        (["--seed", "x"], "--seed"),
        (["--broker", "pigeons"], "--broker"),
        (["--url", "127.0.0.1:8000", "--token", "t"], "--url"),
        (["--url", "http://127.0.0.1:8000"], "--token"),
        (["--json", "/nowhere/at/all.json"], "--json"),
        (["--svg", "/tmp"], "--svg"),
    ],
)
def test_an_option_that_is_of_no_use_is_named(arguments: list[str], named: str, capsys: Output) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["stop", *arguments])
    assert named in capsys.readouterr().err.rpartition("error: ")[2]


def test_the_command_is_kept_without_what_is_nobody_elses_business(tmp_path: Path) -> None:
    where = ["--url", "http://secret.example", "--token", "secret", "--json", str(tmp_path / "secret.json")]
    options = parse(BENCHMARK, ["--stops", "30", "--seed", "1", *where])
    assert command(BENCHMARK, options) == "./dev bench stop --stops 30 --url … --token …"


async def test_an_instance_that_does_not_answer_is_named(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{pick(set())}"
    state, silent = open_state(tmp_path / "state"), (tmp_path / "said").open("w+")
    with silent:
        options = parse(BENCHMARK, ["--url", url, "--token", "t"])
        session = Session(options, Progress(silent), Supervisor(Console(silent)), state)
        with pytest.raises(EmbeddedError, match=f"nothing answers at --url {url}"):
            await BENCHMARK.run(session)
    state.close()


def test_a_command_is_repeated_with_its_flags_and_all_values_of_an_option() -> None:
    given = ["--pairs", "--fault", "worker SIGKILL", "--fault", "Redis FLUSHALL"]
    options = parse(chaos.BENCHMARK, given)
    assert command(chaos.BENCHMARK, options) == f"./dev bench chaos {shlex.join(given)}"


def test_a_fault_that_nobody_knows_is_named_with_those_there_are(capsys: Output) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(chaos.BENCHMARK, ["--fault", "worker SIGHUP"])
    assert "'worker SIGHUP' is none of: worker SIGKILL" in capsys.readouterr().err

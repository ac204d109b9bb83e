"""The commands of `./dev`."""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from services.embedded import checks, foreground, instance, sandboxes
from services.embedded.console import Console, EmbeddedError, fail
from services.embedded.environment import CHECKOUT, Given, for_our_code, given
from services.embedded.front import run_behind_front
from services.embedded.processes import Shape
from services.embedded.state import DEFAULT, State, open_state, running_instance
from services.embedded.stores import Wanted
from services.embedded.supervisor import Supervisor, supervise

HELP = """\
./dev run            start everything: stores, API, workers (./dev run --help for its options)
./dev token          print a signed token of the running instance [--account NAME] [--state DIR]
./dev with-services  run a command beside fresh stores [--rabbitmq] [--fast] [--state DIR] -- CMD…
./dev test           run the tests with their own PostgreSQL, Valkey and RabbitMQ [--slow] [pytest arguments]
                     (all of them in three lanes)
./dev check          format, lint, types, import rules, packages, reasons of exclusions, shell scripts, Dockerfile,
                     the page of the settings
./dev audit          what is known against the packages of the locks (needs the internet)
./dev bench          measure, and draw what was measured (./dev bench lists the benchmarks)
./dev admin          commands for operators, on the running instance, else on what the environment names
                     (./dev admin --help) [--state DIR]
./dev lock           compile the requirements locks [--upgrade]
./dev help           this page

DATABASE_URL, REDIS_URL (or REDIS_URLS; or REDIS_HOST, REDIS_PORT, REDIS_PASSWORD) and RABBITMQ_URL (or
RABBITMQ_HOST, RABBITMQ_PORT) in the environment replace the embedded server each, in `run` and `with-services`."""

LANES = ("-n", "3", "--dist", "loadfile")
"""The whole suite mostly waits: it runs in three lanes, file by file (tests/lanes.py)."""

Body = Callable[[Supervisor, State], Awaitable[int]]


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code (2 when it was not understood)."""
    name, arguments = (argv[0], list(argv[1:])) if argv else ("help", [])
    command = COMMANDS.get(name)
    if command is None:
        fail(f"there is no command {name!r}; ./dev help lists them")
        return 2
    try:
        return command(arguments)
    except EmbeddedError as error:
        fail(str(error))
        return 1


def run(arguments: list[str]) -> int:
    options = run_options().parse_args(arguments)
    preview_port = options.preview_port or (options.port + 2) % 65536 or 8002
    shape = Shape(options.host, options.port, options.api_workers, options.workers, options.threads, preview_port)
    wanted = Wanted(given(), rabbitmq=options.rabbitmq)
    console = Console(sys.stdout)
    return on_state(
        console,
        options.state,
        lambda supervisor, state: instance.run(supervisor, state, shape, wanted),
        reset=options.reset,
    )


def run_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("./dev run", description="Start stores, API and workers; Ctrl-C stops all.")
    parser.add_argument("--port", type=port, default=8000, help="the API's port (8000)")
    parser.add_argument("--preview-port", type=port, help="where ports of sandboxes are shown (the API's port + 2)")
    parser.add_argument("--host", default="127.0.0.1", help="the API's address (127.0.0.1)")
    parser.add_argument("--state", type=folder, default=DEFAULT, help="where data, ports and logs are kept (.longrun)")
    parser.add_argument("--workers", type=positive, default=2, help="worker processes (2)")
    parser.add_argument(
        "--threads", type=at_least_two, default=8, help="runs at a time per worker process, plus one (8)"
    )
    parser.add_argument("--api-workers", type=positive, default=1, help="API processes (1)")
    parser.add_argument("--rabbitmq", action="store_true", help="a private RabbitMQ as the broker instead of Valkey")
    parser.add_argument("--reset", action="store_true", help="remove the state's data first")
    return parser


def token(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("./dev token", description="Print a signed token of the running instance.")
    parser.add_argument("--account", default="dev", help="the account's name, made if new (dev)")
    parser.add_argument("--state", type=folder, default=DEFAULT, help="the instance's state folder (.longrun)")
    options = parser.parse_args(arguments)
    running = running_instance(options.state)
    signed = asyncio.run(instance.account_token(options.account, running["environment"]))
    Console(sys.stdout).say(signed)
    return 0


def with_services(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("./dev with-services", description="Run a command beside fresh stores.")
    parser.add_argument("--rabbitmq", action="store_true", help="a private RabbitMQ as the broker")
    parser.add_argument("--fast", action="store_true", help="do not wait for the disk: for tests")
    parser.add_argument(
        "--state", type=folder, help="keep the data in this folder (default: a new one, removed at the end)"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("name the command to run after --")
    wanted = Wanted(given(), rabbitmq=options.rabbitmq, fast=options.fast)
    return beside_stores(wanted, options.state, command)


def test(arguments: list[str]) -> int:
    os.chdir(CHECKOUT)
    # Addresses in the environment are ignored: the tests empty the stores that they are given.
    command = ["python", "-m", "pytest", *(LANES if chooses_none(arguments) else ()), *arguments]
    return beside_stores(Wanted(Given(), rabbitmq=True, fast=True), None, command)


def chooses_none(arguments: Sequence[str]) -> bool:
    """Whether the arguments name no test: then the whole suite runs, in lanes."""
    return all(argument.startswith("-") for argument in arguments)


def beside_stores(wanted: Wanted, state: Path | None, command: Sequence[str]) -> int:
    console = Console(sys.stderr)
    kept = state or Path(tempfile.mkdtemp(prefix="longrun-"))
    return on_state(
        console,
        kept,
        lambda supervisor, opened: foreground.run(supervisor, opened, wanted, command),
        throw_away=state is None,
    )


def on_state(console: Console, path: Path, body: Body, *, reset: bool = False, throw_away: bool = False) -> int:
    """Run `body` under a supervisor that holds the state folder."""

    def supervised(life: int) -> int:
        state = open_state(path, reset=reset)
        try:
            return asyncio.run(supervise(console, life, lambda supervisor: body(supervisor, state)))
        finally:
            sandboxes.end_all(state)
            state.close()
            if throw_away:
                state.destroy()

    return run_behind_front(supervised)


def check(_arguments: list[str]) -> int:
    return checks.check(Console(sys.stdout))


def audit(_arguments: list[str]) -> int:
    return checks.audit(Console(sys.stdout))


def admin(arguments: list[str]) -> int:
    """On the running instance; when none is running, on what the environment names."""
    parser = argparse.ArgumentParser("./dev admin", add_help=False, allow_abbrev=False)
    parser.add_argument("--state", type=folder)
    options, rest = parser.parse_known_args(arguments)
    names: dict[str, str] = {}
    try:
        names = running_instance(options.state or DEFAULT)["environment"]
    except EmbeddedError:
        if options.state:
            raise
        if "DATABASE_URL" not in os.environ:
            Console(sys.stderr).say("dev: no instance is running (./dev run); asking what the settings name")
    argv = [sys.executable, "-P", "-m", "services.admin", *rest]
    os.execve(sys.executable, argv, for_our_code(names))  # noqa: S606 - our own module


def lock(arguments: list[str]) -> int:
    return checks.lock(Console(sys.stdout), arguments)


def bench(arguments: list[str]) -> int:
    # -P: the folder that we are in, which files are named from, may hold a `tests` of its own.
    argv = [sys.executable, "-P", "-m", "tests.benchmarks", *arguments]
    os.execve(sys.executable, argv, for_our_code({}))  # noqa: S606 - our own module


def show_help(_arguments: list[str]) -> int:
    Console(sys.stdout).say(HELP)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "token": token,
    "with-services": with_services,
    "test": test,
    "check": check,
    "audit": audit,
    "bench": bench,
    "admin": admin,
    "lock": lock,
    "help": show_help,
    "--help": show_help,
    "-h": show_help,
}


def folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


def port(text: str) -> int:
    return number(text, 1, 65535)


def positive(text: str) -> int:
    return number(text, 1, 1000)


def at_least_two(text: str) -> int:
    # One thread of each worker process stays free for short messages.
    return number(text, 2, 1000)


def number(text: str, lowest: int, highest: int) -> int:
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {lowest} to {highest}")
    return int(text)

"""The options of `./dev bench`."""

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from services.embedded.cli import number
from tests.benchmarks.benchmark import Benchmark

UNSAID = {"url", "token", "json", "svg"}
"""Options that are no part of what is measured, and may tell a secret, a host or a path."""


def listing(benchmarks: Sequence[Benchmark]) -> str:
    lines = [f"  {benchmark.name:<10} {benchmark.summary}" for benchmark in benchmarks]
    return "\n".join(["./dev bench NAME [options]; --help after the name lists them", *lines])


def parser_of(benchmark: Benchmark) -> argparse.ArgumentParser:
    """The benchmark's own options, and those that all have."""
    parser = argparse.ArgumentParser(f"./dev bench {benchmark.name}", description=benchmark.summary, allow_abbrev=False)
    benchmark.add_options(parser)
    shared = parser.add_argument_group("options of every benchmark")
    shared.add_argument("--seed", type=int, metavar="N", default=1, help="what chance is drawn from (1)")
    shared.add_argument(
        "--broker", choices=("rabbitmq", "redis"), default="rabbitmq", help="of the private servers (rabbitmq)"
    )
    shared.add_argument(
        "--url", type=url, metavar="URL", help="measure this running instance instead of private servers"
    )
    shared.add_argument("--token", help="of the instance that --url names: ./dev token")
    shared.add_argument("--json", type=new_file, metavar="FILE", help="where the figures go (.longrun/bench)")
    shared.add_argument("--svg", type=new_file, metavar="FILE", help="where the plot goes (.longrun/bench)")
    return parser


def parse(benchmark: Benchmark, arguments: Sequence[str]) -> argparse.Namespace:
    """Exits with code 2, naming the option, when one is not understood."""
    parser = parser_of(benchmark)
    options = parser.parse_args(arguments)
    if bool(options.url) != bool(options.token):
        parser.error("--url and --token go together")
    return options


def command(benchmark: Benchmark, options: argparse.Namespace) -> str:
    """The command that measures the same again."""
    parser = parser_of(benchmark)
    words = ["./dev bench", benchmark.name]
    for name, value in vars(options).items():
        if name not in UNSAID and value != parser.get_default(name):
            words += said(f"--{name.replace('_', '-')}", value)
    if options.url:
        words += ["--url …", "--token …"]
    return " ".join(words)


def said(option: str, value: object) -> list[str]:
    """An option as it was given: a flag, once, or as often as it has values."""
    if value is True:
        return [option]
    values = value if isinstance(value, list) else [value]
    return [word for one in values for word in (option, shlex.quote(str(one)))]


def counted(lowest: int, highest: int = 1_000_000) -> Callable[[str], int]:
    """An argument type: a whole number in this range."""
    return partial(number, lowest=lowest, highest=highest)


def url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://127.0.0.1:8000")
    return text.rstrip("/")


def new_file(text: str) -> Path:
    """Refused now rather than after an hour of measuring."""
    path = Path(text).expanduser().resolve()
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file that can be written")
    return path

"""What operators may write as an argument; argparse names the one that is wrong."""

import argparse
from datetime import timedelta
from uuid import UUID

from services.settings import parse_duration


def identifier(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no id: they look like {UUID(int=0)}") from error


MOST = 2**31 - 1
"""Of whatever is counted: Postgres and AMQP take no more everywhere."""


def positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST}")
    return int(text)


def duration(text: str) -> timedelta:
    age = parse_duration(text)
    if not isinstance(age, timedelta):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 15m, 2d")
    return age


def add_json(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument("--json", action="store_true", help="one JSON document, for scripts")

"""The groups of operator commands; each module of a group adds its own parser and says what runs."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from services import settings
from services.admin import (
    accounts,
    dead_letters,
    keys,
    limits,
    queues,
    retention,
    runs,
    schedules,
    secret_keys,
    workers,
)
from services.admin.output import Output
from services.errors import AppError

GROUPS: tuple[Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None], ...] = (
    runs.add,
    workers.add,
    schedules.add,
    queues.add,
    dead_letters.add,
    accounts.add,
    accounts.add_credits,
    limits.add,
    keys.add,
    secret_keys.add,
    retention.add,
)
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run one command; its exit code: 0, 1 when it failed or left something undone, 2 when it was not understood."""
    options = parser().parse_args(argv)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it warns of, we say in a sentence
    output = Output()
    try:
        code: int = options.run(settings.load(), options, output)
        sys.stdout.flush()
    except AppError as error:
        output.fail(str(error))
        return 1
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            where = ".".join(map(str, problem["loc"]))
            output.fail(": ".join(filter(None, (where, problem["msg"].removeprefix("Value error, ")))))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has seen enough
        return 0
    return code


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser("admin", description="Commands for operators.")
    groups = root.add_subparsers(title="groups", metavar="GROUP", required=True)
    for add in GROUPS:
        add(groups)
    return root

"""A worker with one more actor, which does to the event loop what a bug of ours or of a library would."""

import os
import re
import sys
import time
from collections.abc import Callable

import dramatiq

import worker as worker

QUEUE = os.environ["BLOCKING_QUEUE"]
"""Of this worker alone."""


def sleep() -> None:
    time.sleep(3600)  # where the sleeper stands


def keep_the_interpreter() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # where the matcher stands


def leave() -> None:
    sys.exit("a coroutine may not do this")


WAYS: dict[str, Callable[[], None]] = {"sleep": sleep, "interpreter": keep_the_interpreter, "exit": leave}


@dramatiq.actor(queue_name=QUEUE)
async def block(way: str) -> None:
    WAYS[way]()

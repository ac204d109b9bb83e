"""`python -m worker.health [--within SECONDS]`: whether any worker takes messages; status 0 or 1, and a sentence."""

import argparse
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from uuid import uuid4

from redis import Redis, RedisError

from services import log
from services.broker import Broken
from services.settings import Settings, load
from worker.actors import check_health

POLL_SECONDS = 0.02
WITHIN_SECONDS = 10.0


class NotHealthy(Exception):
    """Nobody answered; the text says why."""


def probe(settings: Settings, within: float) -> float:
    """Have a worker say that it is healthy; seconds until it did. Raises: NotHealthy."""
    key, begun = f"health:{uuid4()}", time.monotonic()
    send(key, within)
    try:
        with Redis.from_url(settings.redis.dsn, socket_timeout=within, socket_connect_timeout=within) as redis:
            while time.monotonic() - begun < within:
                if redis.getdel(key):
                    return time.monotonic() - begun
                time.sleep(POLL_SECONDS)
    except RedisError as error:
        raise NotHealthy(f"Redis cannot be reached: {error}") from error
    raise NotHealthy(f"No worker answered within {within:g} s: none is running, or none takes messages.")


def send(key: str, within: float) -> None:
    """Raises: NotHealthy when the broker does not take the message in time; it may block for longer than that."""
    failures: list[BaseException] = []

    def enqueue() -> None:
        try:
            check_health.send(key)
        except Broken as error:
            failures.append(error)

    sending = threading.Thread(target=enqueue, daemon=True)
    sending.start()
    sending.join(within)
    if failures:
        raise NotHealthy(f"The message broker cannot be reached: {failures[0]!r}") from failures[0]
    if sending.is_alive():
        raise NotHealthy(f"The message broker did not take the message within {within:g} s.")


def seconds(text: str) -> float:
    try:
        if 0 < (value := float(text)) < math.inf:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above zero")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m worker.health", description="Ask whether any worker takes messages.")
    parser.add_argument(
        "--within", type=seconds, default=WITHIN_SECONDS, metavar="SECONDS", help="how long to wait (10)"
    )
    within = parser.parse_args(arguments).within
    log.silence()
    try:
        took = probe(load(), within)
    except NotHealthy as error:
        print(f"Not healthy. {error}", file=sys.stderr)  # noqa: T201 - the answer of the command
        return 1
    print(f"Healthy: a worker answered after {took:.2f} s.")  # noqa: T201 - the answer of the command
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread that still waits for the broker holds nobody up

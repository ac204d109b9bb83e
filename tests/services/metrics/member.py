"""A process of a group: `python -m tests.services.metrics.member FOLDER COUNT` counts, and lives until it is killed."""

import sys
import time
from pathlib import Path

from services import log, metrics
from services.metrics.files import Group


def main(folder: str, count: str) -> None:
    log.silence()
    metrics.run_ends.labels("completed").inc(int(count))
    Group(Path(folder)).join()
    metrics.run_ends.labels("completed").inc(int(count))
    metrics.run_queue_seconds.observe(0.2)
    metrics.runs_active.set(int(count))
    metrics.loop_lag.set(int(count))
    print("ready", flush=True)  # noqa: T201 - heard by the test
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])

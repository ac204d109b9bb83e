"""Many lives of a group: `python -m tests.services.metrics.restarts FOLDER ROUNDS TOGETHER` kills so many at a time.

Each has counted one run. With `-` for a folder, each round is one of a master of its own, that is killed as well.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

from services import log, metrics
from services.metrics import files
from services.metrics.files import Group, group_of
from services.settings import MetricsSettings
from tests.waiting import PATIENT

forking = multiprocessing.get_context("fork")


def count_and_die(group: Group) -> None:
    group.join()
    metrics.run_ends.labels("completed").inc()
    metrics.run_queue_seconds.observe(0.2)
    metrics.runs_active.set(1)
    os.kill(os.getpid(), signal.SIGKILL)


def of_folder(folder: str) -> None:
    count_and_die(Group(Path(folder)))


def of_master() -> None:
    group = group_of(MetricsSettings(), "worker")
    assert group
    count_and_die(group)


def master() -> None:
    worker = forking.Process(target=of_master)
    worker.start()
    worker.join()
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, rounds: int, together: int) -> None:
    log.silence()
    for _ in range(rounds):
        lives = [
            forking.Process(target=master) if folder == "-" else forking.Process(target=of_folder, args=(folder,))
            for _ in range(together)
        ]
        for life in lives:
            life.start()
        for life in lives:
            life.join()
            assert life.exitcode == -signal.SIGKILL


if __name__ == "__main__":
    tempfile.tempdir = sys.argv[4] if len(sys.argv) > 4 else None
    files.LOCK_SECONDS = PATIENT  # a lock that is not waited for costs numbers
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

import asyncio
import os
import threading
from pathlib import Path

import pytest

from services import metrics
from services.background import stop
from services.runs import sampling
from services.runs.sampling import Sampler, count_open_files, keep_sampling
from services.runs.stores import Stores
from tests.waiting import PATIENT, eventually


def test_open_files_are_counted_on_old_kernels_and_on_new_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = count_open_files()
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    try:
        assert 90 <= count_open_files() - before <= 110
    finally:
        for each in opened:
            os.close(each)
    (tmp_path / "1").touch()
    monkeypatch.setattr(sampling, "OPEN_FILES", str(tmp_path))
    with monkeypatch.context() as changed:
        changed.setattr(os, "stat", lambda _path: os.stat_result([0] * 10))
        assert count_open_files() == 1


async def test_the_loop_turns_while_open_files_are_counted(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def count() -> int:
        assert may_end.wait(PATIENT), "the loop waits"
        return 4711

    monkeypatch.setattr(sampling, "count_open_files", count)
    keeping = asyncio.create_task(keep_sampling(Sampler(stores)))
    await asyncio.sleep(0.05)
    may_end.set()
    await eventually(lambda: metrics.registry.get_sample_value("longrun_process_open_fds") == 4711)
    await stop([keeping])

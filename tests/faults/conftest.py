"""One lab for all faults, made whole before each; what each came to is written into the table that is asked for."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import used
from tests.faults import sabotage
from tests.faults.lab import REAL, SCALED, Lab, open_lab
from tests.faults.report import BREAKS_HERE, FAULTS_HERE, Report, write_between
from tests.forks import ForkServer


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report()
    yield report
    if path := request.config.getoption("--table"):
        write_between(Path(path), *FAULTS_HERE, str(report))
        write_between(Path(path), *BREAKS_HERE, sabotage.table())


@pytest.fixture(scope="package")
def lab_folder() -> Iterator[Path]:
    """A folder that the user of PostgreSQL may pass through, unlike `tmp_path`."""
    path = Path(tempfile.mkdtemp(prefix="longrun-lab-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="package")
def standing_lab(lab_folder: Path, forks: ForkServer | None, request: pytest.FixtureRequest) -> Iterator[Lab]:
    scale = REAL if request.config.getoption("--slow") else SCALED
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        lab = runner.run(stack.enter_async_context(open_lab(lab_folder, scale, workers=2, forks=forks)))
        try:
            yield lab
        finally:
            runner.run(stack.aclose())


@pytest.fixture
async def lab(standing_lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    request.node.stash[used] = [standing_lab.deployment]
    async with standing_lab.signed_in():
        standing_lab.deployment.begin_test()
        yield standing_lab
        standing_lab.load.abandon()

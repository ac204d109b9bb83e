"""Every fault once: all runs complete, their readers lose nothing, and the system recovers in time."""

import pytest

from tests.faults.catalogue import FAULTS, Fault
from tests.faults.lab import Lab
from tests.faults.report import Report, Row

RUNS, READERS = 6, 2
CHUNKS = 120
SCALED_RUN_SECONDS, REAL_RUN_SECONDS = 3.0, 30.0
PATIENCE = 5.0
"""How many times a promise a test waits for it; the figure itself is in the table."""
FLOOR_SECONDS = 2.0
"""What a recovery may always take: scaled promises are shorter than a server's start."""


async def suffer(lab: Lab, fault: Fault, run_seconds: float) -> Row:
    """A load, the fault, the recovery, and the end of all runs."""
    await lab.whole(fault.spare_apis, fault.spare_workers)
    seconds = run_seconds + lab.seconds(fault.outage) + fault.starts + fault.boots * lab.scale.boot
    load = lab.new_load(chunks=CHUNKS, delay_ms=int(seconds / CHUNKS * 1000), readers=READERS)
    await load.begin(RUNS)
    await load.flowing()
    async with load.asking(), fault.strike(lab) as struck:
        recovery = await lab.recovery(struck)
    tally = await load.finish(within=60 + 3 * seconds)
    await lab.deployment.check_settled(within=60)
    return Row(fault.name, recovery.seconds, fault.within, str(tally))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS.values() if fault.done_by not in FAULTS], ids=lambda fault: fault.name
)
async def test_all_runs_complete_and_nothing_is_lost(lab: Lab, report: Report, fault: Fault) -> None:
    row = await suffer(lab, fault, SCALED_RUN_SECONDS)
    print(row)  # noqa: T201 - the measured figures
    assert row.seconds < PATIENCE * max(lab.seconds(fault.within), FLOOR_SECONDS), row
    report.add(row)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name)
async def test_all_runs_complete_with_real_durations(lab: Lab, report: Report, fault: Fault) -> None:
    row = await suffer(lab, fault, REAL_RUN_SECONDS)
    print(row)  # noqa: T201 - the measured figures
    assert row.seconds < PATIENCE * fault.within, row
    report.add(row)

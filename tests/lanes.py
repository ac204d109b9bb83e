"""Lanes of tests side by side (pytest-xdist): the first uses the stores it is given, each other one starts its own.

The first lane runs the tests that start processes of their own, the others all else, from both ends of one queue:
no two of those that load the machine run at a time, and the lanes end together.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

FIRST_LANE = "gw0"
HEAVY = (
    "tests/faults/",
    "tests/acceptance/",
    "tests/services/embedded/",
    "tests/agent/browser/",
    "tests/browser/",
    "tests/benchmarks/",
)
"""Folders whose tests start processes of their own, those that take longest first."""
TOGETHER = ("tests/services/sandbox/", "tests/browser/")
"""Folders that one lane runs whole."""
OURS = ("DATABASE_URL", "REDIS_", "BROKER", "RABBITMQ_")
"""How the names begin that say where the stores are."""
BROKERS = ("redis", "rabbitmq")

TELL = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"
"""Says where the stores are; ends, and they with it, once nobody holds its input any more."""


class OwnStores:
    """PostgreSQL, Valkey and RabbitMQ of a lane. Nothing that one lane empties, floods or deletes is another's."""

    def __init__(self) -> None:
        """Begin to start them, which takes as long as to collect the tests."""
        command = [sys.executable, "-m", "services.embedded", "with-services", "--rabbitmq", "--fast", "--"]
        self.process = subprocess.Popen(
            [*command, "python", "-c", TELL],
            env={name: value for name, value in os.environ.items() if not name.startswith(OURS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def ready(self) -> None:
        """Wait until they are, and name them in the environment."""
        assert self.process.stdout
        said = self.process.stdout.readline()
        assert said, "the stores of this lane did not start"
        names: dict[str, str] = json.loads(said)
        os.environ.update({name: value for name, value in names.items() if name.startswith(OURS)})

    def stop(self) -> None:
        self.process.communicate()


def stores_of_this_lane() -> OwnStores | None:
    return None if os.environ.get("PYTEST_XDIST_WORKER", FIRST_LANE) == FIRST_LANE else OwnStores()


class FromBothEnds(LoadFileScheduling):  # type: ignore[misc]  # xdist says nothing of its types
    """Hands out files: to the first lane the heaviest that is left, to each other one the lightest."""

    def _split_scope(self, nodeid: str) -> str:
        """The file; of the acceptance tests all that use one broker: they share a deployment, as browsers do.

        The sandboxes of an ordinary user are all of one user, whose processes the kernel counts together.
        """
        file, _, name = nodeid.partition("::")
        if folder := next(filter(file.startswith, TOGETHER), None):
            return folder
        broker = next((broker for broker in BROKERS if broker in name.partition("[")[2]), "")
        return f"tests/acceptance/ on {broker}" if broker and file.startswith("tests/acceptance/") else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        choose: Callable[..., str] = min if node.gateway.id == FIRST_LANE else max
        self.workqueue.move_to_end(choose(self.workqueue, key=self.lightness), last=False)
        super()._assign_work_unit(node)

    def lightness(self, scope: str) -> tuple[int, int]:
        """Many tests in one file are quick ones."""
        place = next((place for place, folder in enumerate(HEAVY) if scope.startswith(folder)), len(HEAVY))
        return place, len(self.workqueue[scope])

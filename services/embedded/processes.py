"""Longrun's own processes: the API, the workers, and Python modules in general."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.embedded import probes
from services.embedded.child import Spec
from services.embedded.environment import CHECKOUT, for_our_code
from services.embedded.state import State

NEVER_MS = "86400000"
MOST_SHOWN = "200"


@dataclass(frozen=True, slots=True)
class Shape:
    """How many of what, and where the API listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_workers: int = 1
    workers: int = 2
    threads: int = 8
    preview_port: int = 8002

    @property
    def preview_url(self) -> str:
        """Browsers find every name below `localhost` on their own machine."""
        return f"http://{{label}}.localhost:{self.preview_port}/"

    @property
    def reachable_host(self) -> str:
        """The host to connect to: one that listens on all addresses is reached on the loopback."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound

    @property
    def url(self) -> str:
        host = self.reachable_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def python(name: str, state: State, arguments: Sequence[str], names: dict[str, str]) -> Spec:
    """`python -m …` from the checkout."""
    return Spec(
        name=name,
        argv=[sys.executable, "-m", *arguments],
        env=for_our_code(names),
        cwd=CHECKOUT,
        log=state.log(name),
    )


def api(state: State, shape: Shape, names: dict[str, str]) -> Spec:
    arguments = ["uvicorn", "--factory", "api.app:create_app", "--host", shape.host, "--port", str(shape.port)]
    arguments += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--timeout-graceful-shutdown", "5"]
    if shape.api_workers > 1:
        arguments += ["--workers", str(shape.api_workers)]
    return replace(
        python("api", state, arguments, names),
        ready=probes.http_ok(shape.reachable_host, shape.port, "/api/health/ready"),
        ready_within=60.0,
    )


def preview(state: State, shape: Shape, names: dict[str, str]) -> Spec:
    """A listener of its own for what runs on ports of sandboxes."""
    arguments = ["uvicorn", "--factory", "api.preview:create_app", "--host", shape.host]
    arguments += ["--port", str(shape.preview_port), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    arguments += ["--limit-concurrency", MOST_SHOWN, "--timeout-graceful-shutdown", "1"]
    return python("preview", state, arguments, names)


def workers(state: State, shape: Shape, names: dict[str, str]) -> Spec:
    """The workers bound their own drain: Dramatiq's timeout is cut short by its own arithmetic, so it is set huge."""
    arguments = ["dramatiq", "worker", "--processes", str(shape.workers), "--threads", str(shape.threads)]
    return python("workers", state, [*arguments, "--worker-shutdown-timeout", NEVER_MS], names)

"""The process that the terminal sees: it forks the supervisor, passes signals on and outlives nothing.

Each of the two watches the other. When this one is killed the supervisor reads the end of a pipe and stops
everything in order; when the supervisor is killed this one sweeps what it started. When both are killed at once,
every direct child still gets its own stop signal from the kernel (`services.parent`).
"""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from services.embedded.console import EmbeddedError, fail
from services.embedded.orphans import become_subreaper, sweep

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SWEEP_GRACE = 5.0
OPEN_FILES = 65_536
Body = Callable[[int], int]
"""The supervisor: takes a file descriptor that reads as ended once the front is dead; returns an exit code."""


def run_behind_front(body: Body) -> int:
    """Run `body` in a forked process and return its exit code (128 + n when signal n killed it)."""
    become_subreaper()
    life, held_open = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    supervisor = os.fork()
    if supervisor == 0:
        os.close(held_open)
        os._exit(run_body(body, life))
    os.close(life)
    forward_signals(supervisor)
    _, status = os.waitpid(supervisor, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        fail(f"the supervisor was killed by signal {-code}; stopping what it had started")
    sweep(SWEEP_GRACE)
    return code if code >= 0 else 128 - code


def run_body(body: Body, life: int) -> int:
    # A group of its own: a Ctrl-C reaches it once, through the front, and never the servers.
    os.setpgid(0, 0)
    become_subreaper()
    raise_file_limit()
    for signum in FORWARDED:
        signal.signal(signum, signal.SIG_DFL)
    try:
        return body(life)
    except EmbeddedError as error:
        fail(str(error))
        return 1
    except Exception:  # noqa: BLE001 - the fork's own top level: nothing above it would print the traceback
        traceback.print_exc()
        return 1
    finally:
        sweep()
        sys.stdout.flush()
        sys.stderr.flush()


def raise_file_limit() -> None:
    """Every event stream is an open file, and many shells allow a process 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def forward_signals(supervisor: int) -> None:
    def forward(signum: int, _frame: FrameType | None) -> None:
        os.kill(supervisor, signum)

    for signum in FORWARDED:
        signal.signal(signum, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)

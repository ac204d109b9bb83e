"""What ties a process to the one that started it (Linux)."""

import ctypes
import os
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def dying_with(parent: int, signum: int) -> Callable[[], None]:
    """What a child calls before exec, so that it gets `signum` when `parent` dies, however that happens."""

    def tie() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie

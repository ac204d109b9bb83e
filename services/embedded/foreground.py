"""A command in the foreground, with the stores beside it: `./dev with-services` and `./dev test`."""

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from services.embedded import sandboxes, stores
from services.embedded.child import Child, Spec
from services.embedded.console import EmbeddedError
from services.embedded.environment import for_our_code
from services.embedded.state import State
from services.embedded.supervisor import Supervisor

TERMINATED = 128 + 15


async def run(supervisor: Supervisor, state: State, wanted: stores.Wanted, argv: Sequence[str]) -> int:
    """Start the stores, run `argv` with their addresses in its environment, return its exit code.

    Raises: EmbeddedError when there is no such command.
    """
    names = await stores.start(supervisor, state, wanted)
    names |= await sandboxes.prepare(supervisor.console, state, wanted.given)
    child = Child(spec(argv, names))
    child.start()
    try:
        code = await child.exited()
    except asyncio.CancelledError:
        await child.stop()
        return TERMINATED
    return code if code >= 0 else 128 - code


def spec(argv: Sequence[str], names: dict[str, str]) -> Spec:
    program = sys.executable if argv[0] == "python" else shutil.which(argv[0])
    if program is None:
        raise EmbeddedError(f"there is no command {argv[0]!r}")
    return Spec(
        name=argv[0],
        argv=[program, *argv[1:]],
        env=for_our_code(names),
        cwd=Path.cwd(),
        log=None,
        # The front's group, which is the terminal's foreground: the command may read and gets Ctrl-C itself.
        group=os.getpgid(os.getppid()),
    )

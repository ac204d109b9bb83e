"""How a sandbox ends, or does not begin."""

import os
from contextlib import suppress
from typing import NoReturn


class Stopped(Exception):
    pass


class Ended(Exception):
    """The whole sandbox is to end; the text says why."""


def refuse(why: str) -> NoReturn:
    with suppress(OSError):
        os.write(1, why.encode())
    os._exit(1)

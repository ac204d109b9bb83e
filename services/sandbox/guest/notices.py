"""What commands are told of the sandbox's limits."""

import time


class Notices:
    def __init__(self) -> None:
        self.newest, self.noted_at = "", -1.0
        self.disk_full = ""
        """Why nothing more may be written; empty while it may."""

    def note(self, what: str) -> None:
        self.newest, self.noted_at = what, time.monotonic()

    def since(self, began: float) -> bytes:
        """For a command of `began` that was killed, or could not write, for what the sandbox used since then."""
        told = [self.newest] if self.noted_at >= began else [self.disk_full] if self.disk_full else []
        return "".join(f"\n[{each}]\n" for each in told).encode()

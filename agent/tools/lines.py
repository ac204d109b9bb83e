"""A range of the lines of a file that is read piece by piece. Pure."""

MAX_BYTES = 80_000


class Lines:
    """Lines `first` to `last` (to the end, if None) of what is fed; the text of them is at most MAX_BYTES."""

    def __init__(self, first: int = 1, last: int | None = None) -> None:
        self.first, self.last = first, last
        self.at = 1
        self.taken = bytearray()

    @property
    def full(self) -> bool:
        """Nothing more of the file is wanted."""
        found = self.last is not None and self.taken.count(b"\n") > self.last - self.first
        return found or len(self.taken) > MAX_BYTES

    def feed(self, data: bytes) -> None:
        self.taken += self.skip(data) if self.at < self.first else data

    def skip(self, data: bytes) -> bytes:
        """What is left behind the lines that come before the first."""
        found, missing = data.count(b"\n"), self.first - self.at
        self.at += min(found, missing)
        return data.split(b"\n", missing)[missing] if found >= missing else b""

    @property
    def text(self) -> str:
        """The lines; behind them, in brackets, where to go on when they did not all fit."""
        lines = split(bytes(self.taken))
        asked = lines if self.last is None else lines[: self.last - self.first + 1]
        fitting = fit(asked)
        text = b"".join(fitting).decode(errors="replace")
        if len(fitting) == len(asked):
            return text
        if not fitting:
            begun = asked[0][:MAX_BYTES].decode(errors="replace")
            return f"{begun}\n[line {self.first} is longer than this; the rest of it is not shown]"
        return f"{text}[the file goes on: read it from start_line {self.first + len(fitting)}]"


def split(data: bytes) -> list[bytes]:
    """The lines with their ends; only a line feed ends one."""
    *whole, rest = data.split(b"\n")
    return [*(line + b"\n" for line in whole), *([rest] if rest else [])]


def fit(lines: list[bytes]) -> list[bytes]:
    """As many whole lines as there is room for."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line)
        if size > MAX_BYTES:
            return lines[:number]
    return lines

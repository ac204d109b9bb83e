"""A server that cannot be used."""


class Unreachable(Exception):
    """A server cannot be used; the text is a sentence without secrets. `late`: it did not answer in time."""

    def __init__(self, words: str, *, late: bool = False) -> None:
        super().__init__(words)
        self.late = late

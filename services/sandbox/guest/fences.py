"""Which attempt may speak."""

from collections import OrderedDict

from .wire import Answer, Lost

MOST_SUPERSEDED = 1000


class Fences:
    """Which attempt of which run may speak; one run at a time drives a project."""

    def __init__(self, known: Answer) -> None:
        self.run: str | None = known.get("run")
        self.attempt: int = known.get("attempt", 0)
        latest = known.get("superseded", [])[-MOST_SUPERSEDED:]  # it is part of an argument of the agent's process
        self.superseded = OrderedDict[str, None]((run, None) for run in latest)

    @property
    def known(self) -> Answer:
        return {"run": self.run, "attempt": self.attempt, "superseded": list(self.superseded)}

    def admit(self, run: str, attempt: int) -> bool:
        """Whether this fence is new. Raises: Lost when a later one was heard."""
        if run in self.superseded or (run == self.run and attempt < self.attempt):
            raise Lost(f"attempt {attempt} of run {run} no longer drives this project")
        if (run, attempt) == (self.run, self.attempt):
            return False
        if self.run and run != self.run:
            self.superseded[self.run] = None
            if len(self.superseded) > MOST_SUPERSEDED:
                self.superseded.popitem(last=False)
        self.run, self.attempt = run, attempt
        return True

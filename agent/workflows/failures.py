"""How a step fails."""

from services.postgres import storable_text


class StepFailed(Exception):
    """A step could not do what it was told; the text is a sentence for its user.

    `again`: another try may help. `harmless`: it is known that nothing happened, so that one can do no harm. What the
    stores do not take of the text is left out: a server may have said anything.
    """

    def __init__(self, words: str, *, again: bool = True, harmless: bool = False) -> None:
        super().__init__(storable_text(words))
        self.again, self.harmless = again, harmless


class Broken(Exception):
    """A step failed for good and nothing handles it: whatever it is inside of fails, too."""

    def __init__(self, step_id: str, words: str) -> None:
        super().__init__(words)
        self.step_id = step_id

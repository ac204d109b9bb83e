"""Which fences a project has heard, kept beside its workspace over all lives of its sandbox."""

from services.runs.fence import Fence, FenceLost
from services.sandbox.guest.fences import Fences
from services.sandbox.guest.wire import Lost
from services.sandbox.places import Place


def admit(place: Place, fence: Fence | None) -> None:
    """Check a fence against what this project's sandbox has heard in any of its lives, and keep it for the next.

    Raises: FenceLost.
    """
    if fence is None:
        return
    place.make()
    with place.locked():
        fences = Fences(place.recall("fences"))
        try:
            fences.admit(str(fence.run_id), fence.attempt)
        except Lost as error:
            raise FenceLost(str(error)) from error
        place.remember("fences", fences.known)

"""Which provider the settings ask for."""

from uuid import UUID

from services.runs.fence import Fence
from services.sandbox.bubblewrap import Bubblewrap
from services.sandbox.docker import Docker
from services.sandbox.protocol import Sandbox, SandboxProvider, SandboxUnavailable, Spec
from services.sandbox.wishes import Wish, no_wish
from services.settings import SandboxSettings


class Refusing:
    """No sandboxes, and why."""

    def __init__(self, why: str) -> None:
        self.why = why

    async def open(self, project_id: UUID, fence: Fence | None = None, spec: Spec | None = None) -> Sandbox:
        raise SandboxUnavailable(self.why)

    async def stop(self, project_id: UUID) -> None:
        pass

    async def delete(self, project_id: UUID) -> None:
        pass

    async def reap(self, idle_seconds: float) -> list[UUID]:
        return []


def make_provider(settings: SandboxSettings, wish: Wish = no_wish) -> SandboxProvider:
    """`wish` tells what a project's owner wants of its network, when its sandbox is started."""
    if settings.kind == "local":
        return Bubblewrap(settings, wish)
    if settings.kind == "docker":
        return Docker(settings, wish)
    return Refusing("No sandbox: they are switched off here by SANDBOX=off.")

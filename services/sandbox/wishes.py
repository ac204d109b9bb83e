"""What a project's sandbox may use: the operator's settings, and what the project's owner wants of the network."""

from collections.abc import Awaitable, Callable
from uuid import UUID

from services.sandbox.protocol import Spec
from services.settings import SandboxSettings

Wish = Callable[[UUID], Awaitable[bool | None]]
"""Whether a project's sandbox shall have a network; None where nobody said."""


async def no_wish(_: UUID) -> bool | None:
    return None


def spec_for(given: SandboxSettings, network: bool | None) -> Spec:
    """A project may always close its network, and open it where the operator allows."""
    if network is None or (network and not given.network_allowed):
        network = given.network
    return Spec(given.cpus, given.memory_bytes, given.disk_bytes, network)

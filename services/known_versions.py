"""Versions of agents as runs work with them, asked of the database once rather than by every attempt."""

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from services import agent_versions
from services.agent_versions import AgentVersion
from services.cache import Cache
from services.postgres import Pool
from services.secrets import Secrets, SecretUnreadable


@dataclass(frozen=True, slots=True)
class KnownVersions:
    """A version never changes, so what is known of one is true as long as it is there; its secrets stay sealed.

    Which one is current is asked of the database at each start: a changed agent counts for the next run.
    """

    pool: Pool
    cache: Cache[AgentVersion] | None = None
    """None: each time the database is asked."""

    async def opened(self, account_id: UUID, version_id: UUID, secrets: Secrets) -> AgentVersion | None:
        """A version with its secrets, for a run that pinned it; None when it was deleted. Raises: SecretUnreadable."""
        version = await self.find(account_id, version_id)
        try:
            return version.opened(secrets) if version else None
        except SecretUnreadable:  # the row may have been encrypted anew, and the old key taken away
            await self.forget(account_id)
            version = await agent_versions.find(self.pool, version_id)
            return version.opened(secrets) if version else None

    async def find(self, account_id: UUID, version_id: UUID) -> AgentVersion | None:
        ask = partial(agent_versions.find, self.pool, version_id)
        return await (self.cache.get(str(account_id), str(version_id), ask) if self.cache else ask())

    async def forget(self, account_id: UUID) -> None:
        """Versions of the account were deleted, as is committed."""
        if self.cache:
            await self.cache.forget(str(account_id))

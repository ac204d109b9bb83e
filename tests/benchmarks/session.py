"""What a benchmark is handed: its options, the servers it measures, and a place for its progress."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from httpx2 import TransportError

from services.embedded import stores
from services.embedded.console import EmbeddedError
from services.embedded.environment import Given
from services.embedded.state import State
from services.embedded.supervisor import Supervisor
from tests.acceptance.client import Client
from tests.acceptance.operators import Deployment
from tests.benchmarks.circumstances import longrun_version, server_versions
from tests.benchmarks.progress import Progress

UNAUTHORIZED = 401
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Instance:
    """What is measured. `stores` are the addresses of its private stores; None for an instance that --url names."""

    client: Client
    stores: Mapping[str, str] | None = None


@dataclass
class Session:
    """`versions` are those of what was started here; a benchmark with servers of its own adds theirs."""

    options: Namespace
    progress: Progress
    supervisor: Supervisor
    state: State
    versions: dict[str, str] = field(default_factory=dict)
    started: dict[str, str] = field(default_factory=dict)

    async def stores(self) -> Mapping[str, str]:
        """The addresses of private stores as durable as those of `./dev run`, started when first asked for.

        Raises: EmbeddedError when one does not become ready.
        """
        if not self.started:
            # Addresses in the environment are ignored, as by the tests: what is measured there may be in use.
            wanted = stores.Wanted(Given(), rabbitmq=self.options.broker == "rabbitmq")
            self.started = await stores.start(self.supervisor, self.state, wanted)
            self.versions |= await server_versions(self.started)
        return self.started

    @asynccontextmanager
    async def instance(
        self, *, workers: int = 2, threads: int = 16, settings: Mapping[str, str] = NO_SETTINGS
    ) -> AsyncIterator[Instance]:
        """The instance that --url names, or a private one: an API and so many worker processes with these settings.

        Raises: EmbeddedError when --url or --token is of no use.
        """
        if self.options.url:
            async with Client(self.options.url, self.options.token) as client:
                await check_named(client, self.options.url)
                yield Instance(client)
            return
        addresses = await self.stores()
        deployment = self.deployment(addresses, settings)
        try:
            with self.supervisor.console.step("api", f"and {workers} workers of {threads} threads"):
                await asyncio.gather(
                    deployment.start_api(), deployment.start_workers(processes=workers, threads=threads)
                )
            async with Client.signed_in(deployment.url, addresses["JWT_SECRET"]) as client:
                yield Instance(client, addresses)
        except Exception:
            self.show_logs(deployment)
            raise
        finally:
            deployment.close()

    def deployment(self, addresses: Mapping[str, str], settings: Mapping[str, str]) -> Deployment:
        self.versions["longrun"] = longrun_version()
        return Deployment(
            self.state.logs,
            self.options.broker,
            addresses["DATABASE_URL"],
            {**addresses, **settings},
            redis_url=addresses["REDIS_URL"],
        )

    def show_logs(self, deployment: Deployment) -> None:
        """The logs go with the state: what they said last is worth more than the error alone."""
        for name, text in deployment.logs():
            self.progress.say(f"— {name}\n{text}")


async def check_named(client: Client, url: str) -> None:
    """Raises: EmbeddedError naming the option that is of no use."""
    try:
        answer = await client.http.get("/agent-runs/active")
    except TransportError:
        raise EmbeddedError(f"nothing answers at --url {url}") from None
    if answer.status_code == UNAUTHORIZED:
        raise EmbeddedError(f"the instance at {url} does not accept --token")
    answer.raise_for_status()

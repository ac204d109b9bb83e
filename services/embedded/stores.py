"""The stores of one instance: embedded ones, or those that the machine's environment names."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit, urlunsplit

from services.embedded import postgres, rabbitmq, schema, valkey
from services.embedded.child import run_to_end
from services.embedded.console import EmbeddedError
from services.embedded.environment import Given
from services.embedded.processes import python
from services.embedded.state import State
from services.embedded.supervisor import Supervisor, together

MIGRATE_WITHIN = 300.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """`rabbitmq` asks for RabbitMQ as the broker, a private one unless given; `fast` gives up durability, for tests."""

    given: Given
    rabbitmq: bool = False
    fast: bool = False

    @property
    def broker(self) -> str:
        """`redis` or `rabbitmq`: what was asked for, else what BROKER says, else RabbitMQ where its address is given.

        Raises: EmbeddedError on any other BROKER.
        """
        if self.rabbitmq:
            return "rabbitmq"
        if self.given.broker not in ("", "redis", "rabbitmq"):
            raise EmbeddedError(f"BROKER is {self.given.broker!r}; it must be 'redis' or 'rabbitmq'")
        return self.given.broker or ("rabbitmq" if self.given.rabbitmq_url else "redis")

    @property
    def embedded(self) -> list[str]:
        """The addresses that are not given: a server is started for each. Raises: EmbeddedError as `broker`."""
        addresses = {"DATABASE_URL": self.given.database_url, "REDIS_URL": self.given.redis_url}
        if self.broker == "rabbitmq":
            addresses["RABBITMQ_URL"] = self.given.rabbitmq_url
        return [name for name, address in addresses.items() if not address]


async def start(supervisor: Supervisor, state: State, wanted: Wanted) -> dict[str, str]:
    """Start the stores that are not given, all at once, and migrate.

    Returns the names and addresses that our processes read. Raises: EmbeddedError when one does not become ready.
    """
    broker = wanted.broker
    starters = [start_database, start_valkey] + ([start_rabbitmq] if broker == "rabbitmq" else [])
    database, redis, *amqp = await together(*(start(supervisor, state, wanted) for start in starters))
    names = {
        "DATABASE_URL": database,
        "REDIS_URL": redis,
        "REDIS_URLS": wanted.given.redis_urls,
        "BROKER_REDIS_URL": wanted.given.broker_redis_url or with_next_database(redis),
        "BROKER": broker,
        "JWT_SECRET": wanted.given.jwt_secret or state.jwt_secret,
        "SECRETS_KEYS": wanted.given.secrets_keys or state.secrets_key,
        "API_KEY_PEPPER": wanted.given.api_key_pepper or state.api_key_pepper,
    }
    if amqp:
        names["RABBITMQ_URL"] = amqp[0]
    return names


async def start_database(supervisor: Supervisor, state: State, wanted: Wanted) -> str:
    """Start PostgreSQL unless one is given; in both cases bring the schema up to date."""
    if wanted.given.database_url:
        supervisor.console.say("  postgres   given by DATABASE_URL")
        await migrate(supervisor, state, wanted.given.database_url)
        return wanted.given.database_url
    with supervisor.console.step("postgres"):
        server = await postgres.prepare(state, fast=wanted.fast)
        await supervisor.start(server)
    address = postgres.url(state.port("postgres"), state.password)
    if not schema.is_current(server.cwd):
        await migrate(supervisor, state, address)
        schema.mark_current(server.cwd)
    return address


async def migrate(supervisor: Supervisor, state: State, database_url: str) -> None:
    with supervisor.console.step("migrate"):
        spec = python("migrate", state, ["migrations"], {"DATABASE_URL": database_url})
        await run_to_end(replace(spec, ready_within=MIGRATE_WITHIN))


async def start_valkey(supervisor: Supervisor, state: State, wanted: Wanted) -> str:
    if wanted.given.redis_url:
        supervisor.console.say("  redis      given by REDIS_URL, REDIS_URLS or REDIS_HOST")
        return wanted.given.redis_url
    with supervisor.console.step("valkey"):
        await supervisor.start(valkey.prepare(state, fast=wanted.fast))
    return valkey.url(state.port("valkey"), state.password, 0)


async def start_rabbitmq(supervisor: Supervisor, state: State, wanted: Wanted) -> str:
    if wanted.given.rabbitmq_url:
        supervisor.console.say("  rabbitmq   given by RABBITMQ_URL or RABBITMQ_HOST")
        return wanted.given.rabbitmq_url
    with supervisor.console.step("rabbitmq"):
        for spec in await rabbitmq.prepare(state):
            await supervisor.start(spec)
    return rabbitmq.url(state.port("rabbitmq"), state.password)


def with_next_database(url: str) -> str:
    """The same Redis with the next database number: the broker never shares ours."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{int(parts.path.strip('/') or 0) + 1}"))

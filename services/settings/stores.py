"""Where Postgres, Redis and the message broker are, and how patient their clients are."""

from datetime import timedelta
from typing import Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings.redis_urls import database_address, is_redis_url, redis_url
from services.settings.section import Duration, Section, Span


class PostgresSettings(Section):
    model_config = SettingsConfigDict(env_prefix="POSTGRES_")
    url: SecretStr = Field(
        SecretStr("postgresql://longrun:longrun@127.0.0.1:5432/longrun"), validation_alias="DATABASE_URL"
    )
    """Where Postgres is."""
    pool_min: int = Field(10, ge=0)
    """Connections that an API process keeps open."""
    pool_max: int = Field(20, ge=1)
    """Connections that a process may have for its requests and agents."""
    worker_pool_min: int = Field(1, ge=0)
    """Connections that a worker process keeps open."""
    max_queries: int = Field(50_000, ge=1)
    """After so many statements a connection is replaced."""
    idle_lifetime: Duration = timedelta(seconds=300)
    """After being idle for so long a connection is closed."""
    upkeep_connections: int = Field(3, ge=1)
    """Connections beside the pool, for heartbeats, logs and readers, that no request can use up."""
    connect_timeout: Span = timedelta(seconds=10)
    """How long opening a connection may take."""
    acquire_timeout: Span = timedelta(seconds=3)
    """How long to wait for a connection of the pool; then a request is answered 503, and a run waits."""
    command_timeout: Span = timedelta(seconds=6)
    """How long to wait for a statement; then the same."""
    statement_timeout: Duration = timedelta(seconds=60)
    """When the server itself ends a statement; 0: its own setting."""
    idle_transaction_timeout: Duration = timedelta(seconds=10)
    """When the server ends a transaction that nobody goes on with; 0: its own setting."""
    slow_query: Duration = timedelta(seconds=1)
    """Statements that take longer are logged by name; 0: none."""

    @model_validator(mode="after")
    def fit_the_pool(self) -> "PostgresSettings":
        if max(self.pool_min, self.worker_pool_min) > self.pool_max:
            raise ValueError("POSTGRES_POOL_MIN and POSTGRES_WORKER_POOL_MIN must be at most POSTGRES_POOL_MAX")
        return self


class RedisSettings(Section):
    """One server, or several that runs are spread over: `urls` then takes the place of `url`, host and port."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")
    urls: SecretStr = SecretStr("")
    """Several servers that runs are spread over, commas between them, in place of `REDIS_URL`
    ([how](scaling.md#several-servers)).
    """
    url: SecretStr = SecretStr("")
    """Where Redis or Valkey is; else host, port and password say it."""
    host: str = "127.0.0.1"
    """Its host, without `REDIS_URL`."""
    port: int = Field(6379, ge=1, le=65535)
    """Its port, without `REDIS_URL`."""
    password: SecretStr = SecretStr("")
    """Its password, without `REDIS_URL`."""
    pool_size: int = Field(6, ge=1)
    """Connections of a process to each server, beside one for subscriptions."""
    socket_timeout: Span = timedelta(seconds=5)
    """How long an answer may take."""
    connect_timeout: Span = timedelta(seconds=2)
    """How long opening a connection may take."""
    ping_interval: Span = timedelta(seconds=5)
    """How often an idle connection is tried."""

    @property
    def dsn(self) -> str:
        """The URL of our database number on the first server: of REDIS_URLS, REDIS_URL, or host, port and password."""
        if self.listed:
            return self.listed[0]
        if self.url.get_secret_value():
            return self.url.get_secret_value()
        return redis_url(self.host, self.port, self.password.get_secret_value(), 0)

    @property
    def listed(self) -> list[str]:
        return [url.strip() for url in self.urls.get_secret_value().split(",") if url.strip()]

    @property
    def servers(self) -> "list[RedisSettings]":
        """Settings of each server by itself; the first is the home of what belongs to no run."""
        each = [{"urls": SecretStr(""), "url": SecretStr(url)} for url in self.listed]
        return [self.model_copy(update=changes) for changes in each] or [self]

    @property
    def name(self) -> str:
        """What runs know a server by: what follows `#` in its URL, else its address and database number."""
        return urlsplit(self.dsn).fragment or database_address(self.dsn)

    @model_validator(mode="after")
    def name_each_server_once(self) -> "RedisSettings":
        if any(not is_redis_url(url) for url in self.listed):
            raise ValueError(
                "REDIS_URLS must be addresses like redis://host:6379/0 with commas between them"
                " (a comma in a password is %2C)"
            )
        for what in ([server.name for server in self.servers], list(map(database_address, self.listed))):
            twice = sorted({one for one in what if what.count(one) > 1})
            if twice:
                raise ValueError(f"REDIS_URLS names {twice[0]} twice")
        return self


class BrokerSettings(Section):
    model_config = SettingsConfigDict(env_prefix="RABBITMQ_")
    kind: Literal["rabbitmq", "redis"] = Field("rabbitmq", validation_alias="BROKER")
    """The message broker; it is never guessed. `redis` is for small installations."""
    url: SecretStr = SecretStr("")
    """Where RabbitMQ is, several with `;` between them; else host, port, user, password and vhost say it."""
    host: str = "127.0.0.1"
    """Its host, without `RABBITMQ_URL`."""
    port: int = Field(5672, ge=1, le=65535)
    """Its port, without `RABBITMQ_URL`."""
    user: str = "guest"
    """Its user, without `RABBITMQ_URL`."""
    password: SecretStr = SecretStr("guest")
    """Its password, without `RABBITMQ_URL`."""
    vhost: str = "/"
    """Its virtual host, without `RABBITMQ_URL`."""
    queue_type: Literal["classic", "quorum"] = "classic"
    """`classic` has priorities, `quorum` is replicated ([how to change it](scaling.md#rabbitmq))."""
    connection_attempts: int = Field(3, ge=1)
    """How often a connection is tried at a time."""
    retry_delay: Duration = timedelta(seconds=1)
    """How long to wait between those tries."""
    heartbeat: Duration = timedelta(seconds=30)
    """After half as long again without a sign a connection counts as lost."""
    blocked_connection_timeout: Span = timedelta(seconds=10)
    """How long RabbitMQ may refuse to take messages before the connection is given up."""
    socket_timeout: Span = timedelta(seconds=5)
    """How long opening a socket may take."""
    stack_timeout: Span = timedelta(seconds=10)
    """How long opening a connection may take with all that belongs to it."""
    redis_url: SecretStr = Field(SecretStr(""), validation_alias="BROKER_REDIS_URL")
    """For `BROKER=redis`: a database of its own; by default the one after ours."""
    redis_namespace: str = Field("dramatiq", validation_alias="BROKER_REDIS_NAMESPACE")
    """For `BROKER=redis`: what its keys begin with."""
    redis_pool_size: int = Field(32, ge=1, validation_alias="BROKER_REDIS_POOL_SIZE")
    """For `BROKER=redis`: connections of a process."""
    redis_heartbeat_timeout: Span = Field(timedelta(seconds=5), validation_alias="BROKER_REDIS_HEARTBEAT_TIMEOUT")
    """For `BROKER=redis`: when the messages of a silent worker are given to others."""
    redis_maintenance_chance: int = Field(20_000, ge=1, validation_alias="BROKER_REDIS_MAINTENANCE_CHANCE")
    """For `BROKER=redis`: of how many million polls one looks for those."""
    outbox_size: int = Field(10_000, ge=1, validation_alias="BROKER_OUTBOX_SIZE")
    """Messages that a process may have waiting for the broker; the sweeper sends what does not fit."""

    @property
    def amqp_url(self) -> str:
        """RABBITMQ_URL, else built from host, port, user, password and vhost."""
        if self.url.get_secret_value():
            return self.url.get_secret_value()
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return f"amqp://{user}:{password}@{self.host}:{self.port}/{quote(self.vhost, safe='')}"

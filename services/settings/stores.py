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
    pool_min: int = Field(10, ge=0)
    pool_max: int = Field(20, ge=1)
    worker_pool_min: int = Field(1, ge=0)
    max_queries: int = Field(50_000, ge=1)
    idle_lifetime: Duration = timedelta(seconds=300)
    upkeep_connections: int = Field(3, ge=1)
    connect_timeout: Span = timedelta(seconds=10)
    acquire_timeout: Span = timedelta(seconds=3)
    command_timeout: Span = timedelta(seconds=6)
    statement_timeout: Duration = timedelta(seconds=60)
    idle_transaction_timeout: Duration = timedelta(seconds=10)
    slow_query: Duration = timedelta(seconds=1)

    @model_validator(mode="after")
    def fit_the_pool(self) -> "PostgresSettings":
        if max(self.pool_min, self.worker_pool_min) > self.pool_max:
            raise ValueError("POSTGRES_POOL_MIN and POSTGRES_WORKER_POOL_MIN must be at most POSTGRES_POOL_MAX")
        return self


class RedisSettings(Section):
    """One server, or several that runs are spread over: `urls` then takes the place of `url`, host and port."""

    model_config = SettingsConfigDict(env_prefix="REDIS_", hide_input_in_errors=True)
    urls: SecretStr = SecretStr("")
    url: SecretStr = SecretStr("")
    host: str = "127.0.0.1"
    port: int = Field(6379, ge=1, le=65535)
    password: SecretStr = SecretStr("")
    pool_size: int = Field(6, ge=1)
    socket_timeout: Span = timedelta(seconds=5)
    connect_timeout: Span = timedelta(seconds=2)
    ping_interval: Span = timedelta(seconds=5)

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
    url: SecretStr = SecretStr("")
    host: str = "127.0.0.1"
    port: int = Field(5672, ge=1, le=65535)
    user: str = "guest"
    password: SecretStr = SecretStr("guest")
    vhost: str = "/"
    queue_type: Literal["classic", "quorum"] = "classic"
    connection_attempts: int = Field(3, ge=1)
    retry_delay: Duration = timedelta(seconds=1)
    heartbeat: Duration = timedelta(seconds=30)
    blocked_connection_timeout: Span = timedelta(seconds=10)
    socket_timeout: Span = timedelta(seconds=5)
    stack_timeout: Span = timedelta(seconds=10)
    redis_url: SecretStr = Field(SecretStr(""), validation_alias="BROKER_REDIS_URL")
    redis_namespace: str = Field("dramatiq", validation_alias="BROKER_REDIS_NAMESPACE")
    redis_pool_size: int = Field(32, ge=1, validation_alias="BROKER_REDIS_POOL_SIZE")
    redis_heartbeat_timeout: Span = Field(timedelta(seconds=5), validation_alias="BROKER_REDIS_HEARTBEAT_TIMEOUT")
    redis_maintenance_chance: int = Field(20_000, ge=1, validation_alias="BROKER_REDIS_MAINTENANCE_CHANCE")
    outbox_size: int = Field(10_000, ge=1, validation_alias="BROKER_OUTBOX_SIZE")

    @property
    def amqp_url(self) -> str:
        """RABBITMQ_URL, else built from host, port, user, password and vhost."""
        if self.url.get_secret_value():
            return self.url.get_secret_value()
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return f"amqp://{user}:{password}@{self.host}:{self.port}/{quote(self.vhost, safe='')}"

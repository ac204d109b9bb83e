"""Every setting of Longrun: the only reader of the environment."""

from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.settings.access import (
    ApiKeySettings,
    ApiSettings,
    AuthSettings,
    SecretsSettings,
)
from services.settings.agents import (
    AgentSettings,
    McpSettings,
    ModelSettings,
    OutgoingSettings,
    PreviewSettings,
    SandboxSettings,
    SearchSettings,
)
from services.settings.billing import BillingSettings, Price, Tier
from services.settings.deployment import (
    DeploymentSettings,
    LangfuseSettings,
    LogSettings,
    OpenTelemetrySettings,
    SentrySettings,
)
from services.settings.limits import LimitSettings
from services.settings.metrics import MetricsSettings
from services.settings.production import refusals
from services.settings.redis_urls import database_address, with_next_database
from services.settings.retention import RetentionSettings
from services.settings.runs import RunSettings, StreamSettings
from services.settings.schedules import QstashSettings, ScheduleSettings
from services.settings.section import parse_duration
from services.settings.stores import BrokerSettings, PostgresSettings, RedisSettings
from services.settings.webhooks import WebhookSettings

__all__ = [
    "AgentSettings",
    "ApiKeySettings",
    "ApiSettings",
    "AuthSettings",
    "BillingSettings",
    "BrokerSettings",
    "DeploymentSettings",
    "LangfuseSettings",
    "LimitSettings",
    "LogSettings",
    "McpSettings",
    "MetricsSettings",
    "ModelSettings",
    "OpenTelemetrySettings",
    "OutgoingSettings",
    "PostgresSettings",
    "PreviewSettings",
    "Price",
    "QstashSettings",
    "RedisSettings",
    "RetentionSettings",
    "RunSettings",
    "SandboxSettings",
    "ScheduleSettings",
    "SearchSettings",
    "SecretsSettings",
    "SentrySettings",
    "Settings",
    "StreamSettings",
    "Tier",
    "WebhookSettings",
    "load",
    "parse_duration",
]


class Settings(BaseModel):
    """All sections. Build once at an entry point with `load()` and hand down."""

    model_config = ConfigDict(frozen=True)
    deployment: DeploymentSettings = Field(default_factory=DeploymentSettings)
    postgres: PostgresSettings = Field(default_factory=PostgresSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    runs: RunSettings = Field(default_factory=RunSettings)
    streams: StreamSettings = Field(default_factory=StreamSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    api_keys: ApiKeySettings = Field(default_factory=ApiKeySettings)
    secrets: SecretsSettings = Field(default_factory=SecretsSettings)
    billing: BillingSettings = Field(default_factory=BillingSettings)
    agent: AgentSettings = Field(default_factory=AgentSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    outgoing: OutgoingSettings = Field(default_factory=OutgoingSettings)
    schedules: ScheduleSettings = Field(default_factory=ScheduleSettings)
    qstash: QstashSettings = Field(default_factory=QstashSettings)
    mcp: McpSettings = Field(default_factory=McpSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    langfuse: LangfuseSettings = Field(default_factory=LangfuseSettings)
    sentry: SentrySettings = Field(default_factory=SentrySettings)
    opentelemetry: OpenTelemetrySettings = Field(default_factory=OpenTelemetrySettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    previews: PreviewSettings = Field(default_factory=PreviewSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @property
    def production(self) -> bool:
        return self.deployment.environment == "production"

    @property
    def broker_redis_url(self) -> str:
        """BROKER_REDIS_URL, else our Redis with the next database number: the two never share one."""
        named = self.broker.redis_url.get_secret_value()
        return named or with_next_database(self.redis.dsn)

    @model_validator(mode="after")
    def keep_the_broker_apart(self) -> "Settings":
        ours = [database_address(url) for url in self.redis.listed]
        if self.broker.kind == "redis" and database_address(self.broker_redis_url) in ours:
            raise ValueError("BROKER_REDIS_URL must be a database of its own: REDIS_URLS names the same one")
        return self

    @model_validator(mode="after")
    def know_qstash(self) -> "Settings":
        if self.schedules.backend == "qstash" and not self.qstash.complete:
            raise ValueError(
                "SCHEDULES=qstash needs QSTASH_TOKEN, QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY"
            )
        return self

    @model_validator(mode="after")
    def refuse_unsafe_production(self) -> "Settings":
        if self.production and (found := list(refusals(self))):
            raise ValueError("\n".join(f"{refusal}, when ENVIRONMENT=production" for refusal in found))
        return self


@lru_cache(maxsize=1)
def load() -> Settings:
    """Read the environment and `.env` once per process.

    Raises: pydantic.ValidationError naming each setting that is wrong.
    """
    return Settings()

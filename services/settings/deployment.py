"""Where this runs, and what it tells about itself."""

from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section


class DeploymentSettings(Section):
    environment: Literal["development", "production"] = "development"
    """`production` refuses development secrets, demo models, known passwords and credentials in clear
    ([SECURITY.md](../SECURITY.md)).
    """


class LogSettings(Section):
    model_config = SettingsConfigDict(env_prefix="LOG_")
    level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged; production refuses `debug`."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is JSON in production and lines for people elsewhere."""


class LangfuseSettings(Section):
    """Where runs are traced to; nowhere without both keys."""

    model_config = SettingsConfigDict(env_prefix="LANGFUSE_")
    public_key: SecretStr = SecretStr("")
    """With the secret key: runs, model calls and tools are traced."""
    secret_key: SecretStr = SecretStr("")
    """Goes with the public key."""
    host: str = "https://cloud.langfuse.com"
    """Where Langfuse is."""

    @property
    def in_use(self) -> bool:
        return bool(self.public_key.get_secret_value().strip() and self.secret_key.get_secret_value().strip())


class SentrySettings(Section):
    """Where errors are reported to; nowhere without a DSN."""

    model_config = SettingsConfigDict(env_prefix="SENTRY_")
    dsn: SecretStr = SecretStr("")
    """Where errors are reported to; empty: nowhere."""
    environment: str = ""
    """Without one that of the deployment."""
    release: str = ""
    """What errors are said to come from."""

    @field_validator("dsn")
    @classmethod
    def check_dsn(cls, given: SecretStr) -> SecretStr:
        if said := given.get_secret_value().strip():
            parts = urlsplit(said)
            project = parts.path.rpartition("/")[2]
            if parts.scheme not in ("http", "https") or not (parts.username and parts.hostname and project.isdigit()):
                raise ValueError("must be a DSN of Sentry: https://KEY@HOST/PROJECT")
        return given

    @property
    def in_use(self) -> bool:
        return bool(self.dsn.get_secret_value().strip())


class OpenTelemetrySettings(Section):
    """Where spans are exported to; nowhere without an endpoint. The names are OpenTelemetry's own."""

    model_config = SettingsConfigDict(env_prefix="OTEL_")
    exporter_otlp_endpoint: str = ""
    """The collector that spans are exported to, by OTLP over HTTP; empty: none."""
    exporter_otlp_headers: SecretStr = SecretStr("")
    """Headers for it: `name=value`, several with commas between them."""
    service_name: str = "longrun"
    """What the spans are said to come from."""
    traces_sampler_arg: float = Field(1.0, ge=0, le=1)
    """Share of the traces that begin here; those that a caller has begun are kept as the caller says."""

    @field_validator("exporter_otlp_headers")
    @classmethod
    def check_headers(cls, given: SecretStr) -> SecretStr:
        if any("=" not in pair for pair in pairs_of(given)):
            raise ValueError("must be name=value, several with commas between them")
        return given

    @property
    def in_use(self) -> bool:
        return bool(self.exporter_otlp_endpoint.strip())

    @property
    def headers(self) -> dict[str, str]:
        named = (pair.partition("=") for pair in pairs_of(self.exporter_otlp_headers))
        return {unquote(name).strip().lower(): unquote(value).strip() for name, _, value in named}


def pairs_of(headers: SecretStr) -> list[str]:
    return [pair for pair in headers.get_secret_value().split(",") if pair.strip()]

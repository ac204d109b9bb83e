"""Where this runs, and what it tells about itself."""

from typing import Literal

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section


class DeploymentSettings(Section):
    environment: Literal["development", "production"] = "development"


class LogSettings(Section):
    model_config = SettingsConfigDict(env_prefix="LOG_")
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class LangfuseSettings(Section):
    """Where runs are traced to; nowhere without both keys."""

    model_config = SettingsConfigDict(env_prefix="LANGFUSE_")
    public_key: SecretStr = SecretStr("")
    secret_key: SecretStr = SecretStr("")
    host: str = "https://cloud.langfuse.com"

    @property
    def in_use(self) -> bool:
        return bool(self.public_key.get_secret_value().strip() and self.secret_key.get_secret_value().strip())

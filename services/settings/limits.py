"""How much accounts and users may ask for."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section


class LimitSettings(Section):
    """What holds for accounts to which operators gave no other limits. 0: no limit."""

    model_config = SettingsConfigDict(env_prefix="LIMIT_")
    max_concurrent_runs: int = Field(3, ge=0, validation_alias="MAX_CONCURRENT_RUNS")

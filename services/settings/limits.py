"""How much accounts and users may ask for."""

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section, Span


class LimitSettings(Section):
    """What holds for accounts to which operators gave no other limits. 0: no limit."""

    model_config = SettingsConfigDict(env_prefix="LIMIT_")
    max_concurrent_runs: int = Field(3, ge=0, validation_alias="MAX_CONCURRENT_RUNS")
    """Runs of an account that are not over and do not wait for a time; 0: any number."""
    rate_limit_per_minute: int = Field(100, ge=0, validation_alias="RATE_LIMIT_PER_MINUTE")
    """Requests of a user in any 60 seconds; 0: any number."""
    rate_limit_without_redis: Literal["closed_for_starts", "closed", "open"] = Field(
        "closed_for_starts", validation_alias="RATE_LIMIT_WITHOUT_REDIS"
    )
    """Who is let through while they cannot be counted."""
    rate_limit_timeout: Span = Field(timedelta(seconds=1), validation_alias="RATE_LIMIT_TIMEOUT")
    """How long counting may take."""

    def closed_without_redis(self, to_start: bool) -> bool:
        """Whether a request is refused while nobody can say how many there were."""
        closed_for = {"closed": True, "open": False, "closed_for_starts": to_start}
        return closed_for[self.rate_limit_without_redis]

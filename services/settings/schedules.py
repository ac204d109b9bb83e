"""Schedules: who wakes them, and how far behind they may be."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section, Span


class ScheduleSettings(Section):
    """`max_waiting`, `max_per_account`: 0 is no limit."""

    model_config = SettingsConfigDict(env_prefix="SCHEDULE_")
    backend: Literal["local", "qstash"] = Field("local", validation_alias="SCHEDULES")
    poll_interval: Span = timedelta(seconds=1)
    claim: Span = timedelta(seconds=10)
    grace: Span = timedelta(hours=1)
    on_time: Span = timedelta(minutes=1)
    max_catch_up: int = Field(24, ge=1, le=1000)
    max_waiting: int = Field(3, ge=0)
    max_per_account: int = Field(100, ge=0)
    concurrency: int = Field(4, ge=1)
    keep_firings: Span = Field(timedelta(days=30), ge=timedelta(days=1))


class QstashSettings(Section):
    """Upstash QStash; both signing keys, since it changes them one by one."""

    model_config = SettingsConfigDict(env_prefix="QSTASH_")
    url: str = Field("https://qstash.upstash.io", pattern=r"^https?://.+$")
    token: SecretStr = SecretStr("")
    current_signing_key: SecretStr = SecretStr("")
    next_signing_key: SecretStr = SecretStr("")
    timeout: Span = timedelta(seconds=10)

    @property
    def complete(self) -> bool:
        values = (self.token, self.current_signing_key, self.next_signing_key)
        return all(value.get_secret_value().strip() for value in values)

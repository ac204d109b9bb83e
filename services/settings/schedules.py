"""Schedules: who wakes them, and how far behind they may be."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section, Span


class ScheduleSettings(Section):
    """When schedules fire, how late, and how many there may be."""

    model_config = SettingsConfigDict(env_prefix="SCHEDULE_")
    backend: Literal["local", "qstash"] = Field("local", validation_alias="SCHEDULES")
    """Who wakes schedules: any worker (`local`), or Upstash QStash (`qstash`). From `qstash` back to `local` leave its
    keys in: workers have it forget all schedules."""
    poll_interval: Span = timedelta(seconds=1)
    """How often a worker looks for new schedules at the least."""
    claim: Span = timedelta(seconds=10)
    """How long a worker keeps those that it is about to fire from others."""
    grace: Span = timedelta(hours=1)
    """How late the newest missed time may still be fired (`once`)."""
    on_time: Span = timedelta(minutes=1)
    """How late is still in time (`skip`)."""
    max_catch_up: int = Field(24, ge=1, le=1000)
    """How many missed times are made up for at the most (`all`)."""
    max_waiting: int = Field(3, ge=0)
    """How many runs of a schedule may be unfinished before its next time is skipped; 0: no limit."""
    max_per_account: int = Field(100, ge=0)
    """How many schedules an account may have; 0: no limit."""
    concurrency: int = Field(4, ge=1)
    """How many a worker fires at a time."""
    keep_firings: Span = Field(timedelta(days=30), ge=timedelta(days=1))
    """How long the logs of firings are kept."""


class QstashSettings(Section):
    """Upstash QStash; both signing keys, since it changes them one by one."""

    model_config = SettingsConfigDict(env_prefix="QSTASH_")
    url: str = Field("https://qstash.upstash.io", pattern=r"^https?://.+$")
    """Where QStash is."""
    token: SecretStr = SecretStr("")
    """The key for it."""
    current_signing_key: SecretStr = SecretStr("")
    """What it signs deliveries with."""
    next_signing_key: SecretStr = SecretStr("")
    """What it will sign them with next."""
    timeout: Span = Field(timedelta(seconds=10), le=timedelta(seconds=20))
    """How long it may take to answer."""

    @property
    def complete(self) -> bool:
        values = (self.token, self.current_signing_key, self.next_signing_key)
        return all(value.get_secret_value().strip() for value in values)

"""Runs, their logs and the streams that show them."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Duration, Section, Span


class RunSettings(Section):
    """Durations of CONTRACT section 6; tests scale them down."""

    model_config = SettingsConfigDict(env_prefix="RUN_")
    lock_ttl: Span = timedelta(seconds=15)
    heartbeat_interval: Span = timedelta(seconds=5)
    dead_after: Span = timedelta(seconds=15)
    sweep_interval: Span = timedelta(seconds=2)
    resend_after: Span = timedelta(seconds=5)
    close_after: Span = timedelta(seconds=5)
    stop_grace: Duration = timedelta(milliseconds=150)
    timeout: Span = timedelta(hours=6)
    max_crashes: int = Field(5, ge=1)
    drain: Literal["handover", "finish"] = "handover"
    watchdog_timeout: Span = timedelta(seconds=60)
    drain_deadline: Duration = timedelta(minutes=10)
    log_ttl: Span = timedelta(hours=24)
    append_interval: Duration = timedelta(milliseconds=10)
    append_timeout: Span = timedelta(seconds=30)
    archive_interval: Span = timedelta(seconds=1)
    max_event_bytes: int = Field(1024 * 1024, ge=1024)
    max_events: int = Field(200_000, ge=10)
    max_log_bytes: int = Field(256 * 1024 * 1024, ge=1024)
    max_tail_bytes: int = Field(8 * 1024 * 1024, ge=1024)

    @model_validator(mode="after")
    def renew_before_the_lock_expires(self) -> "RunSettings":
        if self.heartbeat_interval > self.lock_ttl / 2:
            raise ValueError("RUN_HEARTBEAT_INTERVAL must be at most half of RUN_LOCK_TTL")
        if self.dead_after < self.heartbeat_interval:
            raise ValueError("RUN_DEAD_AFTER must be at least RUN_HEARTBEAT_INTERVAL: live runs would be taken over")
        return self


class StreamSettings(Section):
    model_config = SettingsConfigDict(env_prefix="STREAM_")
    ping_interval: Span = timedelta(seconds=15)
    retry: Duration = timedelta(seconds=3)
    send_timeout: Span = timedelta(seconds=30)
    silence: Span = timedelta(seconds=5)
    window_bytes: int = Field(256 * 1024, ge=1024)
    windows_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    max_streams: int = Field(20_000, ge=1)
    max_streams_per_user: int = Field(200, ge=0)
    token_lifetime: Span = timedelta(minutes=15)
    recheck_interval: Span = Field(timedelta(seconds=30), le=timedelta(seconds=45))

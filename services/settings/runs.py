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
    """How long a run's lock lasts without being renewed."""
    heartbeat_interval: Span = timedelta(seconds=5)
    """How often a driver renews it and writes its heartbeat."""
    dead_after: Span = timedelta(seconds=15)
    """When a driver without a heartbeat counts as dead and its run goes on elsewhere."""
    sweep_interval: Span = timedelta(seconds=2)
    """How often each worker looks for runs that need something."""
    resend_after: Span = timedelta(seconds=5)
    """When the message of a run that nobody claimed is sent again."""
    close_after: Span = timedelta(seconds=5)
    """When an end that was cut off in the middle is finished by others."""
    stop_grace: Duration = timedelta(milliseconds=150)
    """How long a live driver has to end a stopped run before whoever was asked ends it."""
    timeout: Span = timedelta(hours=6)
    """How long a run may take from its first claim."""
    max_crashes: int = Field(5, ge=1)
    """How many dead workers a run survives."""
    drain: Literal["handover", "finish"] = "handover"
    """What a worker that is asked to stop does with live runs: `handover`, or let them `finish`."""
    watchdog_timeout: Span = timedelta(seconds=60)
    """When a worker process whose loop does not answer ends itself."""
    drain_deadline: Duration = timedelta(minutes=10)
    """How long `finish` lets them go on."""
    log_ttl: Span = timedelta(hours=24)
    """How long a log stays in Redis after its last event; the archive in Postgres stays."""
    append_interval: Duration = timedelta(milliseconds=10)
    """For how long events are gathered before they are appended."""
    append_timeout: Span = timedelta(seconds=30)
    """When a run ends whose log cannot be written."""
    archive_interval: Span = timedelta(seconds=1)
    """How often what was appended is stored in Postgres."""
    max_event_bytes: int = Field(1024 * 1024, ge=1024)
    """The largest event."""
    max_events: int = Field(200_000, ge=10)
    """Events of a run."""
    max_log_bytes: int = Field(256 * 1024 * 1024, ge=1024)
    """All events of a run together."""
    max_tail_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    """What a process holds of a run's log that is not archived yet."""

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
    """How often a silent stream says that it is there."""
    retry: Duration = timedelta(seconds=3)
    """After how long an `EventSource` comes back."""
    send_timeout: Span = timedelta(seconds=30)
    """When a reader that takes nothing is let go."""
    silence: Span = timedelta(seconds=5)
    """After how long a silent log is looked at in Postgres."""
    window_bytes: int = Field(256 * 1024, ge=1024)
    """What a process holds of a log for its live readers."""
    windows_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    """What it holds of all logs together."""
    max_streams: int = Field(20_000, ge=1)
    """Open streams of a process; more are told to come again."""
    max_streams_per_user: int = Field(200, ge=0)
    """Open streams of one user at a process; 0: any number."""
    token_lifetime: Span = timedelta(minutes=15)
    """How long a stream token opens its stream."""
    recheck_interval: Span = Field(timedelta(seconds=30), le=timedelta(seconds=45))
    """How often open streams ask whether their reader may still read."""

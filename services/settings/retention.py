"""What is deleted by age. 0: never, which is the default of all that a user would miss."""

from datetime import timedelta

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Duration, Section, Span

NEVER = timedelta(0)
SOONEST = timedelta(hours=1)
SOONEST_RUNS = timedelta(days=2)
"""Readers of a run may follow its log in Redis for a day after its end (RUN_LOG_TTL)."""


class RetentionSettings(Section):
    model_config = SettingsConfigDict(env_prefix="RETENTION_")
    events: Duration = NEVER
    """How long after the end of a run its archived events are deleted; its stream then tells the last one only. 0:
    never.
    """
    messages: Duration = NEVER
    """How old messages of threads without a live run are when they are deleted. 0: never."""
    runs: Duration = NEVER
    """How long after its end a run is deleted. 0: never."""
    interval: Span = timedelta(minutes=1)
    """How often a worker looks for what is too old."""
    sweep_time: Span = Field(timedelta(seconds=20), le=timedelta(hours=1))
    """How long a sweep may go on."""

    @property
    def anything(self) -> bool:
        return any((self.events, self.messages, self.runs))

    @model_validator(mode="after")
    def keep_what_may_be_in_use(self) -> "RetentionSettings":
        for name, age, least in (
            ("EVENTS", self.events, SOONEST),
            ("MESSAGES", self.messages, SOONEST),
            ("RUNS", self.runs, SOONEST_RUNS),
        ):
            if NEVER < age < least:
                raise ValueError(f"RETENTION_{name} must be 0 (never) or at least {least // SOONEST}h")
        return self

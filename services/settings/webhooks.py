"""Webhooks: what is sent when a run has ended, and what may start a workflow."""

from datetime import timedelta

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Duration, Section, Span

MAX_ATTEMPTS = 50


class WebhookSettings(Section):
    """`parallel` deliveries are under way at once in a worker process, so many of them of an account, or to a host.

    The last three are for what comes in; who was let in before is known for longer than the window can be.
    """

    model_config = SettingsConfigDict(env_prefix="WEBHOOK_")
    attempts: int = Field(10, ge=1, le=MAX_ATTEMPTS)
    first_delay: Span = timedelta(seconds=5)
    max_delay: Span = timedelta(hours=6)
    timeout: Span = timedelta(seconds=15)
    poll_interval: Span = timedelta(seconds=1)
    parallel: int = Field(32, ge=1)
    parallel_per_account: int = Field(16, ge=1)
    parallel_per_receiver: int = Field(4, ge=1)
    secret_grace: Duration = timedelta(hours=24)
    keep: Span = timedelta(days=30)
    replay_window: Span = Field(timedelta(minutes=5), le=timedelta(hours=12))
    max_body_bytes: int = Field(256 * 1024, ge=1024)
    rate_per_minute: int = Field(60, ge=0)

    @model_validator(mode="after")
    def grow(self) -> "WebhookSettings":
        if self.first_delay > self.max_delay:
            raise ValueError("WEBHOOK_FIRST_DELAY must be at most WEBHOOK_MAX_DELAY")
        return self

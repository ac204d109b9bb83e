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
    """How often a delivery of the end of a run is tried."""
    first_delay: Span = timedelta(seconds=5)
    """How long after the first try the second comes; each later one three times as long, with jitter."""
    max_delay: Span = timedelta(hours=6)
    """The longest wait between two tries."""
    timeout: Span = timedelta(seconds=15)
    """How long a receiver may take."""
    poll_interval: Span = timedelta(seconds=1)
    """How often a worker looks for deliveries that are due."""
    parallel: int = Field(32, ge=1)
    """Deliveries that a worker process sends at once."""
    parallel_per_account: int = Field(16, ge=1)
    """So many of them for one account."""
    parallel_per_receiver: int = Field(4, ge=1)
    """So many of them to one host of an account."""
    secret_grace: Duration = timedelta(hours=24)
    """For how long a secret counts beside the one that took its place."""
    keep: Span = timedelta(days=30)
    """For how long deliveries that are over are listed."""
    replay_window: Span = Field(timedelta(minutes=5), le=timedelta(hours=12))
    """How old the signature of a webhook that starts a workflow may be."""
    max_body_bytes: int = Field(256 * 1024, ge=1024)
    """The largest body of such a webhook."""
    rate_per_minute: int = Field(60, ge=0)
    """How many of them a workflow takes in 60 seconds; 0: any number."""

    @model_validator(mode="after")
    def grow(self) -> "WebhookSettings":
        if self.first_delay > self.max_delay:
            raise ValueError("WEBHOOK_FIRST_DELAY must be at most WEBHOOK_MAX_DELAY")
        return self

"""Errors to Sentry: each once, found by the ids of its run and request, without what people say.

What is an error is decided by whoever logs one: a line at level error is an event. Beside it the libraries' hooks tell
of what nobody has caught.
"""

import atexit
import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.integrations.asyncpg import AsyncPGIntegration
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.dramatiq import DramatiqIntegration
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.types import Event, Hint
from sentry_sdk.utils import event_from_exception
from structlog.contextvars import get_contextvars

from services.excerpts import Excerpts
from services.log import process_words, run_words, without_credentials
from services.settings import Settings

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

TAGS = ("agent_run_id", "thread_id", "workflow_id", "execution_id", "request_id", "instance_id", "attempt")
OF_THE_LINE = {"event", "level", "timestamp", "exc_info", "logger", "account_id", *TAGS}
KEPT_OF_REQUESTS = ("method", "url")
FLUSH_SECONDS = 1.0
MAX_CHARS = 2000
MAX_DEPTH = 12
MAX_BREADCRUMBS = 20


def start(settings: Settings) -> None:
    chosen = settings.sentry
    sentry_sdk.init(
        dsn=chosen.dsn.get_secret_value().strip(),
        environment=chosen.environment or settings.deployment.environment,
        release=chosen.release or None,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=integrations(),
        before_send=Scrubber(settings).event,
        send_default_pii=False,
        include_local_variables=False,
        max_request_body_size="never",
        max_breadcrumbs=MAX_BREADCRUMBS,
        auto_session_tracking=False,
        send_client_reports=False,
        propagate_traces=False,
        enable_metrics=False,
        spotlight=False,
        shutdown_timeout=FLUSH_SECONDS,
    )
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, Reporter)]
    root.addHandler(Reporter(logging.ERROR))
    atexit.register(flush)  # what ends a process, or keeps it from starting, is told last


def integrations() -> list[Integration]:
    """Those of what we are built of. Its own of logging is not among them: our lines are no sentences but fields."""
    return [
        StarletteIntegration(middleware_spans=False),
        FastApiIntegration(middleware_spans=False),
        DramatiqIntegration(),
        AsyncPGIntegration(),
        DedupeIntegration(),
    ]


def flush() -> None:
    sentry_sdk.flush(FLUSH_SECONDS)


class Reporter(logging.Handler):
    """A line at level error as an event, with the exception that it tells of."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("sentry_sdk", "urllib3")):
            return  # it tells of itself
        try:
            event, hint = as_event(record)
            sentry_sdk.capture_event(event, hint=hint)
        except Exception:  # noqa: BLE001 - the boundary of a handler: as all of them do
            self.handleError(record)


def as_event(record: logging.LogRecord) -> tuple[Event, Hint]:
    said = record.msg if isinstance(record.msg, dict) else {}
    words = str(said.get("event") or record.getMessage())
    event: Event = {}
    hint: Hint = {}
    if exc_info := exception_of(said.get("exc_info") or record.exc_info):
        options = sentry_sdk.get_client().options
        event, hint = event_from_exception(exc_info, options, mechanism={"type": "logging", "handled": True})
    event["level"] = "fatal" if record.levelno >= logging.CRITICAL else "error"
    event["logger"] = record.name
    event["logentry"] = {"message": words}
    event["tags"] = {name: str(said[name]) for name in TAGS if said.get(name) not in (None, "")}
    event["extra"] = {str(name): value for name, value in said.items() if name not in OF_THE_LINE}
    hint["log_record"] = record
    return event, hint


def exception_of(said: Any) -> ExcInfo | None:
    """In any of the ways in which a line may say it."""
    if isinstance(said, BaseException):
        return type(said), said, said.__traceback__
    if isinstance(said, tuple) and said and said[1]:
        return said
    found = sys.exc_info() if said is True else (None, None, None)
    return found if found[0] else None


class Scrubber:
    """The last who sees an event: what leaves has no credential, no body, no header, no query and no user."""

    def __init__(self, settings: Settings) -> None:
        self.excerpts = Excerpts(settings)

    def event(self, event: Event, _hint: Hint) -> Event | None:
        found = get_contextvars()
        known = {**process_words, **run_words.get(str(found.get("agent_run_id")), {}), **found}
        tags = {name: str(known[name]) for name in TAGS if known.get(name) not in (None, "")}
        event["tags"] = {**tags, **dict(event.get("tags") or {})}
        event.pop("user", None)
        event.get("contexts", {}).pop("dramatiq", None)  # the message with its arguments
        if request := event.get("request"):
            kept = {name: str(request[name]) for name in KEPT_OF_REQUESTS if name in request}
            event["request"] = {**kept, "url": kept.get("url", "").partition("?")[0]}
        scrubbed: Event = self.scrubbed(event, MAX_DEPTH)
        return scrubbed

    def scrubbed(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping) and depth:
            return {name: self.scrubbed(inner, depth - 1) for name, inner in value.items()}
        if isinstance(value, list | tuple) and depth:
            return [self.scrubbed(inner, depth - 1) for inner in value]
        return value if value is None or isinstance(value, bool | int | float) else self.text(repr(value))

    def text(self, value: str) -> str:
        """What Postgres says in detail is the row that it would not take."""
        return self.excerpts.text(without_credentials(value.partition("\nDETAIL:")[0]), MAX_CHARS)

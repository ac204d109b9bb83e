"""Errors are reported to Sentry when it has a DSN; without one nobody is told, and nothing of it is imported."""

import asyncio
import sys
from importlib import import_module

from services.settings import Settings

SENTRY = "services.sentry"


def start(settings: Settings) -> None:
    """After the log is configured, before there is an application or a broker: Sentry wraps what both are made of."""
    if settings.sentry.in_use:
        import_module(SENTRY).start(settings)


async def flush() -> None:
    """Send what waits, for a second at most."""
    if sentry := sys.modules.get(SENTRY):
        await asyncio.to_thread(sentry.flush)

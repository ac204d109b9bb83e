"""The one HTTP client of a process (TRAPS 30): pooled, with bounded waits."""

import ssl
from functools import lru_cache

from httpx2 import AsyncClient, Limits, Timeout, create_ssl_context

from services.settings import Settings

LIMITS = Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30)


def open_client(settings: Settings) -> AsyncClient:
    """Make the shared client; who opens it closes it with `aclose()`.

    A read waits as long as a silent model may (LLM_IDLE_TIMEOUT); callers with less patience pass their own timeout.
    """
    headers = {"User-Agent": "longrun"}
    return AsyncClient(limits=LIMITS, timeout=timeouts(settings), headers=headers, verify=tls())


@lru_cache(maxsize=1)
def tls() -> ssl.SSLContext:
    """One for all clients of a process: its certificates take 20 ms and memory to load."""
    return create_ssl_context()


def timeouts(settings: Settings) -> Timeout:
    connect = settings.models.connect_timeout.total_seconds()
    return Timeout(connect, read=settings.models.idle_timeout.total_seconds(), write=30)

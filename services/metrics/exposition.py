"""The answer of /metrics, and who may have it."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hmac import compare_digest
from ipaddress import ip_address

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services import metrics
from services.log import logger
from services.metrics.files import Group, group_of
from services.settings import MetricsSettings

__all__ = ["CONTENT_TYPE", "Exposition", "may_read", "open_exposition"]

FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""What proxies add: whoever asks through one is not on this machine, whatever the connection looks like."""


class All(Collector):
    def __init__(self, *parts: Iterable[Metric]) -> None:
        self.parts = parts

    def collect(self) -> Iterable[Metric]:
        for part in self.parts:
            yield from part


class Exposition:
    """What this process answers: the metrics of its group, or its own when it is alone."""

    def __init__(self, group: Group | None) -> None:
        self.group = group

    async def text(self, more: Iterable[Metric] = ()) -> bytes:
        """In Prometheus' text format, with families that were found elsewhere. Beside the loop: it takes some ms."""
        return await asyncio.to_thread(self.written, tuple(more))

    def written(self, more: Iterable[Metric]) -> bytes:
        collector = self.group or metrics.registry
        return generate_latest(All(collector.collect(), more))


@contextmanager
def open_exposition(settings: MetricsSettings, role: str) -> Iterator[Exposition]:
    """Join the group of this process; where that cannot be, its numbers are told alone."""
    group: Group | None = None
    try:
        group = group_of(settings, role)
        if group:
            group.join()
    except OSError as error:
        logger.warning("metrics.told_alone", error=repr(error))
        if group:
            group.leave()
        group = None
    try:
        yield Exposition(group)
    finally:
        if group:
            group.leave()


def may_read(settings: MetricsSettings, peer: str, headers: Mapping[str, str]) -> bool:
    """Whether the metrics are for whoever asks: by METRICS_TOKEN where there is one, else from this machine alone.

    `peer` is the other end of the connection itself, whatever anybody says of it; `headers` have lower-case names.
    """
    token = settings.token.get_secret_value()
    if token:
        scheme, _, said = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and compare_digest(said.strip().encode(), token.encode())
    return is_loopback(peer) and not any(name in headers for name in FORWARDED)


def is_loopback(peer: str) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

"""OTLP over HTTP: what both kinds of traces are sent by. A thread of its own each, nothing waits for it."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from threading import Thread

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Sampler

from services.log import logger

MAX_WAITING = 256
"""Steps that wait to be sent; more are dropped. Each has two texts of at most 10,000 characters."""
BATCH = 32
SEND_EVERY_MS = 2000
SEND_SECONDS = 5.0
CLOSE_SECONDS = 1.0


class Sender(OTLPSpanExporter):
    """Logs when whom we send to stops taking it, and when it is taken again."""

    def __init__(self, to: str, endpoint: str, headers: Mapping[str, str]) -> None:
        super().__init__(endpoint=endpoint, headers=headers, timeout=SEND_SECONDS, compression=Compression.Gzip)
        ours = {"content-type", "content-encoding", "user-agent", *map(str.lower, headers)}
        sent = self._client._headers  # OTEL_EXPORTER_OTLP_HEADERS is among them: the keys of one are none of another's
        self._client._headers = {name: value for name, value in sent.items() if name.lower() in ours}
        self.to, self.away = to, False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self.away:
            logger.warning("tracing.away", to=self.to, lost=len(spans))
        if self.away and not away:
            logger.info("tracing.back", to=self.to)
        self.away = away
        return result


def open_provider(
    sender: Sender,
    resource: Mapping[str, str],
    sampler: Sampler,
    ids: RandomIdGenerator | None = None,
    max_waiting: int = MAX_WAITING,
) -> TracerProvider:
    """A provider of our own: what other libraries trace is none of it."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # Sender tells of an outage, once
    provider = TracerProvider(
        sampler=sampler,
        resource=Resource(resource),
        id_generator=ids or RandomIdGenerator(),
        shutdown_on_exit=False,
    )
    sending = BatchSpanProcessor(
        sender, max_queue_size=max_waiting, max_export_batch_size=BATCH, schedule_delay_millis=SEND_EVERY_MS
    )
    provider.add_span_processor(sending)
    return provider


async def close(provider: TracerProvider, to: str) -> None:
    """Send what waits, for a second at most; what is not sent then is lost."""
    closing = Thread(target=provider.shutdown, name=f"{to} close", daemon=True)
    closing.start()
    await asyncio.to_thread(closing.join, CLOSE_SECONDS)
    if closing.is_alive():
        logger.warning("tracing.closed_late", to=to, seconds=CLOSE_SECONDS)

"""A Langfuse, a collector or a Sentry that only listens: it takes spans and events over real HTTP and keeps them."""

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services import otlp
from tests.waiting import PATIENT


@dataclass(frozen=True)
class Span:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    seconds: float

    def __getitem__(self, attribute: str) -> Any:
        """One of Langfuse's attributes of an observation; JSON is read."""
        value = self.attributes.get(f"langfuse.observation.{attribute}")
        return orjson.loads(value) if isinstance(value, str) and value[:1] in '[{"' else value


@dataclass
class Collector:
    """`status` is what it answers; with `hold` set to a blank event it answers nothing until that is set."""

    status: int = 200
    hold: threading.Event | None = None
    posts: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    server: ThreadingHTTPServer = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> list[Span]:
        return [span for path, _, body in list(self.posts) if "traces" in path for span in spans_of(body)]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What Sentry's clients sent: of their envelopes the items that are events."""
        return [event for path, _, body in list(self.posts) if path.endswith("/envelope/") for event in events_of(body)]

    def named(self, name: str) -> Span:
        """The only span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold:
            self.hold.set()
        self.server.shutdown()
        self.server.server_close()


def send_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans come whole and together, however long that takes."""
    monkeypatch.setattr(otlp, "SEND_EVERY_MS", 60_000)
    monkeypatch.setattr(otlp, "CLOSE_SECONDS", PATIENT)


def handler_of(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            unpacked = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
            if collector.hold:
                collector.hold.wait(30)
            if collector.status == 200:
                collector.posts.append((self.path, headers, unpacked))
            self.send_response(collector.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a hung-up client is part of the tests."""

    return Handler


def events_of(envelope: bytes) -> Iterator[dict[str, Any]]:
    """An envelope is its header, then a header and a payload for each item; ours have one line each."""
    _, *lines = envelope.split(b"\n")
    for header, payload in zip(lines[::2], lines[1::2], strict=False):
        if orjson.loads(header).get("type") == "event":
            yield orjson.loads(payload)


def spans_of(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    found = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    return [
        Span(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes},
            (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        )
        for span in found
    ]

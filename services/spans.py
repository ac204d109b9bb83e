"""Spans of requests, messages, runs, model calls and tools to an OpenTelemetry collector: one trace from end to end.

They say how long something took and what came of it, never what was said: that is Langfuse's, which keeps it for those
who may read it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services import origin, otlp
from services.broker import RUN_QUEUE
from services.origin import Origin
from services.runs.store import Run
from services.settings import Settings

PATH = "/v1/traces"
MAX_WAITING = 4096
"""Spans that wait to be sent; more are dropped. None has more than a kilobyte."""
MAX_NAME_CHARS = 200
W3C = TraceContextTextMapPropagator()
TOKENS = {"prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens"}
"""As the semantic conventions name them."""


class SpanTracing:
    def __init__(self, settings: Settings) -> None:
        chosen = settings.opentelemetry
        sender = otlp.Sender("opentelemetry", chosen.exporter_otlp_endpoint.rstrip("/") + PATH, chosen.headers)
        resource = {"service.name": chosen.service_name, "deployment.environment.name": settings.deployment.environment}
        sampler = ParentBased(TraceIdRatioBased(chosen.traces_sampler_arg))
        self.provider = otlp.open_provider(sender, resource, sampler, max_waiting=MAX_WAITING)
        self.tracer = self.provider.get_tracer("longrun")

    def request(self, method: str, came_from: Origin) -> "Passing":
        span = self.begin(method, came_from, SpanKind.SERVER)
        span.set_attribute("http.request.method", method)
        return Passing(span)

    def message(self, run: Run) -> "Passing":
        span = self.begin(f"send {RUN_QUEUE}", origin.of_row(run.settings), SpanKind.PRODUCER, about(run))
        span.set_attribute("messaging.operation.type", "send")
        span.set_attribute("messaging.destination.name", RUN_QUEUE)
        return Passing(span)

    @contextmanager
    def attempt(self, run: Run) -> Iterator["RunSpans"]:
        """Below the sending of the message that woke us up, or else below the request that the row knows."""
        came_from = origin.of_attempt(run.settings)
        shared = {**about(run), "longrun.request_id": came_from.request_id}
        root = self.begin("agent_run", came_from, SpanKind.CONSUMER, shared)
        with ending(root):
            yield RunSpans(self, root, shared)

    def begin(
        self, name: str, came_from: Origin, kind: SpanKind, attributes: Mapping[str, str | int] | None = None
    ) -> Span:
        above = W3C.extract({"traceparent": came_from.traceparent}, Context()) if came_from.traceparent else Context()
        told = {"longrun.request_id": came_from.request_id, **(attributes or {})}
        return self.tracer.start_span(name, above, kind, attributes=told)

    async def close(self) -> None:
        await otlp.close(self.provider, "opentelemetry")


class Passing:
    """A request or a message."""

    def __init__(self, span: Span) -> None:
        self.span = span
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(span, Context()))
        self.traceparent = carrier.get("traceparent", "")

    def over(self, *, failed: bool, **told: str | int) -> None:
        """`route` and `status` as HTTP has them; with both the span is named as others name theirs."""
        if route := told.get("route"):
            self.span.update_name(f"{told.get('method', '')} {route}".strip())
            self.span.set_attribute("http.route", route)
        if status := told.get("status"):
            self.span.set_attribute("http.response.status_code", status)
        if failed:
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class RunSpans:
    """One attempt at a run, and what is begun below it."""

    def __init__(self, tracing: SpanTracing, root: Span, shared: Mapping[str, str | int]) -> None:
        self.tracing, self.root, self.shared = tracing, root, shared

    @contextmanager
    def generation(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Iterator["StepSpan"]:
        told = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}
        with self.step("model", SpanKind.CLIENT, told) as step:
            yield step

    @contextmanager
    def tool(self, name: str, call_id: str, arguments: Any) -> Iterator["StepSpan"]:
        told = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.call.id": call_id}
        with self.step("tool", SpanKind.INTERNAL, told) as step:
            yield step

    @contextmanager
    def step(self, name: str, kind: SpanKind, told: Mapping[str, str]) -> Iterator["StepSpan"]:
        bounded = {key: word.encode(errors="replace").decode()[:MAX_NAME_CHARS] for key, word in told.items()}
        below = set_span_in_context(self.root, Context())
        span = self.tracing.tracer.start_span(name, below, kind, attributes={**self.shared, **bounded})
        with ending(span):
            yield StepSpan(span)

    def ended(self, status: str, error: str | None = None) -> None:
        self.root.set_attribute("longrun.status", status)
        if status == "failed":
            self.root.set_status(Status(StatusCode.ERROR))


class StepSpan:
    def __init__(self, span: Span) -> None:
        self.span = span
        self.spoke = False

    def speaks(self) -> None:
        if not self.spoke:
            self.spoke = True
            self.span.add_event("gen_ai.first_token")

    def ends(self, output: Any, *, usage: Mapping[str, int] | None = None, failed: bool = False) -> None:
        for name, attribute in TOKENS.items():
            if usage and name in usage:
                self.span.set_attribute(attribute, usage[name])
        if failed:
            self.span.set_status(Status(StatusCode.ERROR))


@contextmanager
def ending(span: Span) -> Iterator[None]:
    """Ends a span; an exception that passes marks it, by its kind alone: its words may hold secrets."""
    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        if isinstance(error, Exception | SystemExit):
            span.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        span.end()


def about(run: Run) -> dict[str, str | int]:
    told: dict[str, str | int] = {
        "longrun.agent_run_id": str(run.id),
        "longrun.thread_id": str(run.thread_id),
        "longrun.project_id": str(run.project_id),
        "longrun.account_id": str(run.account_id),
        "longrun.kind": run.kind,
        "longrun.attempt": run.attempt,
        "longrun.instance_id": run.instance_id or "",
    }
    workflow_id = run.settings.get("workflow_id")
    return {**told, "longrun.workflow_id": str(workflow_id)} if workflow_id else told

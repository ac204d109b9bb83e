"""Traces to Langfuse, by OpenTelemetry's SDK to its OTLP endpoint (`/api/public/otel`).

The attributes are those of Langfuse's own SDK 5, which is not used: it costs 24 MB and 2 s to import, runs four
threads and waits at its end until its server has answered.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import orjson
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, set_span_in_context

from services import origin, otlp
from services.excerpts import Excerpts
from services.runs.store import Run
from services.settings import LangfuseSettings, Settings
from services.tracing import Unasked

PATH = "/api/public/otel/v1/traces"


class LangfuseTracing(Unasked):
    """Runs, and what was said in them. Requests and messages are none of it."""

    def __init__(self, settings: Settings) -> None:
        self.excerpts = Excerpts(settings)
        self.ids = TraceIds()
        resource = {"service.name": "longrun", "langfuse.environment": settings.deployment.environment}
        self.provider = otlp.open_provider(sender(settings.langfuse), resource, ALWAYS_ON, self.ids)
        self.tracer = self.provider.get_tracer("longrun")

    @contextmanager
    def attempt(self, run: Run) -> Iterator["RunTrace"]:
        """A trace of the run's id; several attempts are several roots of one trace."""
        trace = RunTrace(self, run)
        with observed(trace.root):
            yield trace

    async def close(self) -> None:
        await otlp.close(self.provider, "langfuse")


def sender(settings: LangfuseSettings) -> otlp.Sender:
    keys = f"{settings.public_key.get_secret_value()}:{settings.secret_key.get_secret_value()}"
    headers = {
        "Authorization": f"Basic {base64.b64encode(keys.encode()).decode()}",
        "x-langfuse-ingestion-version": "4",
    }
    return otlp.Sender("langfuse", settings.host.rstrip("/") + PATH, headers)


class TraceIds(RandomIdGenerator):
    """A trace has the id of its run, which is told just before its root is begun."""

    next_trace_id = 0

    def generate_trace_id(self) -> int:
        return self.next_trace_id


class RunTrace:
    """One attempt at a run: its root, and what is begun below it."""

    def __init__(self, tracing: LangfuseTracing, run: Run) -> None:
        self.tracing = tracing
        self.excerpts = tracing.excerpts
        self.shared = {
            "session.id": str(run.thread_id),
            "user.id": str(run.account_id),
            "langfuse.trace.name": "agent_run",
            "langfuse.trace.metadata.project_id": str(run.project_id),
            "langfuse.trace.metadata.instance_id": run.instance_id or "",
            "langfuse.trace.metadata.request_id": origin.of_attempt(run.settings).request_id,
        }
        tracing.ids.next_trace_id = run.id.int
        self.root = tracing.tracer.start_span(
            "agent_run",
            Context(),
            attributes={
                **self.shared,
                "langfuse.observation.type": "agent",
                "langfuse.observation.metadata.model": run.model_name,
                "langfuse.observation.metadata.attempt": run.attempt,
                "langfuse.observation.metadata.crashes": run.crashes,
            },
        )
        self.asked = False

    @contextmanager
    def generation(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Iterator["Observation"]:
        if not self.asked:
            self.root.set_attribute("langfuse.observation.input", self.excerpts.json(last_question(messages)))
            self.asked = True
        with self.observe("model", "generation", messages) as step:
            step.span.set_attribute("langfuse.observation.model.name", model)
            step.above = self.root
            yield step

    @contextmanager
    def tool(self, name: str, call_id: str, arguments: Any) -> Iterator["Observation"]:
        with self.observe(self.excerpts.text(name, 200), "tool", arguments) as step:
            step.span.set_attribute("langfuse.observation.metadata.tool_call_id", self.excerpts.text(call_id, 200))
            yield step

    @contextmanager
    def observe(self, name: str, kind: str, given: Any) -> Iterator["Observation"]:
        span = self.tracing.tracer.start_span(
            name,
            set_span_in_context(self.root, Context()),
            attributes={
                **self.shared,
                "langfuse.observation.type": kind,
                "langfuse.observation.input": self.excerpts.json(given),
            },
        )
        with observed(span):
            yield Observation(span, self.excerpts)

    def ended(self, status: str, error: str | None = None) -> None:
        self.root.set_attribute("langfuse.observation.metadata.status", status)
        if status == "failed":
            fail(self.root, self.excerpts.text(error or status))


class Observation:
    """A step of a run; `above` gets its output too, for the newest answer is what a run came to."""

    def __init__(self, span: Span, excerpts: Excerpts) -> None:
        self.span, self.excerpts = span, excerpts
        self.above: Span | None = None
        self.spoke = False

    def speaks(self) -> None:
        if not self.spoke:
            self.spoke = True
            now = orjson.dumps(datetime.now(UTC), option=orjson.OPT_UTC_Z).decode()
            self.span.set_attribute("langfuse.observation.completion_start_time", now)

    def ends(self, output: Any, *, usage: Mapping[str, int] | None = None, failed: bool = False) -> None:
        told = self.excerpts.json(output)
        for span in filter(None, (self.span, self.above)):
            span.set_attribute("langfuse.observation.output", told)
        if usage:
            counted = orjson.dumps(usage_details(usage)).decode()
            self.span.set_attribute("langfuse.observation.usage_details", counted)
        if failed:
            fail(self.span, self.excerpts.text(str(output)))


@contextmanager
def observed(span: Span) -> Iterator[None]:
    """Ends a span; an exception that passes marks it, by its kind alone: its words may hold secrets."""
    try:
        yield
    except (Exception, SystemExit) as error:
        fail(span, type(error).__name__)
        raise
    except BaseException as left:
        fail(span, type(left).__name__, level="WARNING")
        raise
    finally:
        span.end()


def fail(span: Span, why: str, level: str = "ERROR") -> None:
    span.set_attribute("langfuse.observation.level", level)
    span.set_attribute("langfuse.observation.status_message", why[:1000])


def last_question(messages: Sequence[Mapping[str, Any]]) -> Any:
    return next((said.get("content") for said in reversed(messages) if said.get("role") == "user"), None)


def usage_details(usage: Mapping[str, int]) -> dict[str, int]:
    """Langfuse adds up what begins with `input` and with `output`: the parts must not overlap."""
    cached, written = usage.get("cached_tokens", 0), usage.get("cache_write_tokens", 0)
    reasoning = usage.get("reasoning_tokens", 0)
    parts = {
        "input_cached_tokens": cached,
        "input_cache_creation": written,
        "output_reasoning_tokens": reasoning,
    }
    return {
        "input": max(usage.get("prompt_tokens", 0) - cached - written, 0),
        "output": max(usage.get("completion_tokens", 0) - reasoning, 0),
        "total": usage.get("total_tokens", 0),
        **{name: tokens for name, tokens in parts.items() if tokens},
    }

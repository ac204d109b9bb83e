"""Spans to a collector over real HTTP: one trace from the request to the tool, without what was said."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from services import origin
from services.origin import Origin
from services.settings import LangfuseSettings, OpenTelemetrySettings, Settings
from services.tracing import Tracing, open_tracing
from tests.collector import Collector, send_at_the_end
from tests.services.test_tracing import USAGE, make_run

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    send_at_the_end(monkeypatch)
    with Collector() as listening:
        yield listening


@pytest.fixture(autouse=True)
def no_message() -> Iterator[None]:
    token = origin.current.set(origin.NOWHERE)
    yield
    origin.current.reset(token)


def exporting(collector: Collector, **changes: Any) -> Settings:
    chosen = {"exporter_otlp_endpoint": f"{collector.url}/", "exporter_otlp_headers": SecretStr("x-key=k%20k,b=c")}
    return Settings(opentelemetry=OpenTelemetrySettings(**{**chosen, **changes}))


@asynccontextmanager
async def spans_to(collector: Collector, **changes: Any) -> AsyncIterator[Tracing]:
    async with open_tracing(exporting(collector, **changes)) as tracing:
        yield tracing


async def test_a_request_its_message_and_its_run_are_one_trace(collector: Collector) -> None:
    async with spans_to(collector) as tracing:
        request = tracing.request("POST", Origin("req-1", PARENT))
        run = make_run(settings={"origin": {"request_id": "req-1", "traceparent": request.traceparent}})
        message = tracing.message(run)
        message.over(failed=False)
        request.over(failed=False, route="/api/agent/initiate", method="POST", status=200)
        origin.current.set(Origin("req-1", message.traceparent))
        with tracing.attempt(run) as tracer:
            with tracer.generation("openai/m", [{"role": "user", "content": "the secret recipe"}]) as step:
                step.speaks()
                step.ends("the secret answer", usage=USAGE)
            with tracer.tool("look_up", "call_1", {"word": "secret"}) as step:
                step.ends("secret", failed=True)
            tracer.ended("failed", "the secret reason")
    names = ("POST /api/agent/initiate", "send agent_runs", "agent_run", "model", "tool")
    spans = request_span, sending, root, model, tool = [collector.named(name) for name in names]
    assert {span.trace_id for span in collector.spans} == {PARENT.split("-")[1]}
    assert request_span.parent_id == PARENT.split("-")[2]
    parents = [span.parent_id for span in (sending, root, model, tool)]
    assert parents == [request_span.span_id, sending.span_id, root.span_id, root.span_id]
    assert {span.attributes["longrun.request_id"] for span in spans} == {"req-1"}
    assert request_span.attributes["http.response.status_code"] == 200
    for span in (sending, root, model, tool):
        assert span.attributes["longrun.agent_run_id"] == str(run.id)
        assert span.attributes["longrun.thread_id"] == str(run.thread_id)
    assert model.attributes["gen_ai.usage.input_tokens"] == USAGE["prompt_tokens"]
    assert tool.attributes["gen_ai.tool.name"] == "look_up"
    assert root.attributes["longrun.status"] == "failed"
    ((path, headers, body),) = collector.posts
    assert (path, headers["x-key"], headers["b"]) == ("/v1/traces", "k k", "c")
    assert b"secret" not in body


async def test_the_row_counts_when_a_message_says_nothing_or_is_of_another_trace(collector: Collector) -> None:
    run = make_run(settings={"origin": {"request_id": "req-1", "traceparent": PARENT}})
    async with spans_to(collector) as tracing:
        for said in ("", f"00-{'1' * 32}-{'2' * 16}-01"):
            origin.current.set(Origin("other", said))
            with tracing.attempt(run):
                pass
    assert {(span.trace_id, span.parent_id) for span in collector.spans} == {tuple(PARENT.split("-")[1:3])}
    assert {span.attributes["longrun.request_id"] for span in collector.spans} == {"req-1"}


async def test_a_trace_that_is_not_kept_is_passed_on_as_such(collector: Collector) -> None:
    async with spans_to(collector, traces_sampler_arg=0.0) as tracing:
        request = tracing.request("POST", Origin("req-1"))
        assert not int(request.traceparent[-2:], 16) & 1
        with tracing.attempt(make_run(settings={"origin": {"traceparent": request.traceparent}})):
            pass
        request.over(failed=False)
        with tracing.attempt(make_run(settings={"origin": {"traceparent": PARENT}})):
            pass
    assert [span.trace_id for span in collector.spans] == [PARENT.split("-")[1]], "its caller keeps that one"


async def test_both_are_told_and_neither_gets_the_keys_of_the_other(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=of-the-collector")
    with Collector() as other:
        keys = LangfuseSettings(public_key=SecretStr("pk-lf"), secret_key=SecretStr("sk-lf-secret"), host=other.url)
        both = exporting(collector).model_copy(update={"langfuse": keys})
        run = make_run(settings={"origin": {"request_id": "req-1", "traceparent": PARENT}})
        async with open_tracing(both) as tracing:
            with tracing.attempt(run) as tracer:
                with pytest.raises(ValueError, match="hush"), tracer.tool("look_up", "call_1", {}):
                    raise ValueError("hush")
                tracer.ended("completed")
        assert {span.trace_id for span in other.spans} == {run.id.hex}
        assert other.named("agent_run").attributes["langfuse.trace.metadata.request_id"] == "req-1"
        assert collector.named("tool").attributes["error.type"] == "ValueError"
        assert "x-key" not in other.posts[0][1]
        assert "authorization" not in collector.posts[0][1]
        assert not [body for _, _, body in (*collector.posts, *other.posts) if b"hush" in body]

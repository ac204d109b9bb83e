"""Tracing to a collector over real HTTP; without keys, to nobody."""

import asyncio
import base64
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from services import otlp
from services.runs.store import Run
from services.settings import LangfuseSettings, Settings
from services.tracing import UNTRACED, Tracing, open_tracing
from tests.collector import Collector, send_at_the_end

USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, "cached_tokens": 60, "reasoning_tokens": 5}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    send_at_the_end(monkeypatch)
    with Collector() as listening:
        yield listening


def keyed(host: str) -> Settings:
    keys = LangfuseSettings(public_key=SecretStr("pk-lf-1"), secret_key=SecretStr("sk-lf-secret"), host=host)
    return Settings(langfuse=keys)


@asynccontextmanager
async def tracing_to(collector: Collector) -> AsyncIterator[Tracing]:
    async with open_tracing(keyed(collector.url + "/")) as tracing:
        yield tracing


def make_run(**known: Any) -> Run:
    ids = {name: uuid4() for name in ("id", "account_id", "project_id", "thread_id")}
    plain = {
        "settings": {},
        "kind": "agent",
        "attempt": 2,
        "crashes": 1,
        "model_name": "openai/m",
        "instance_id": "worker-7",
    }
    return Run(**{each.name: None for each in fields(Run)} | ids | plain | known)  # type: ignore[arg-type]


async def test_a_run_is_one_trace_of_its_id_with_its_model_calls_and_tools_below(collector: Collector) -> None:
    run = make_run()
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is new?"}]
    async with tracing_to(collector) as tracing:
        with tracing.attempt(run) as tracer:
            with tracer.generation("openai/m", messages) as step:
                step.speaks()
                step.ends("Not much.", usage=USAGE)
            with tracer.tool("look_up", "call_1", {"word": "tide"}) as step:
                step.ends("It rises.")
            tracer.ended("completed")
    root, model, tool = (collector.named(name) for name in ("agent_run", "model", "look_up"))
    assert {span.trace_id for span in collector.spans} == {run.id.hex}
    assert (root.parent_id, model.parent_id, tool.parent_id) == ("", root.span_id, root.span_id)
    for span in (root, model, tool):
        assert span.attributes["session.id"] == str(run.thread_id)
        assert span.attributes["user.id"] == str(run.account_id)
        assert span.attributes["langfuse.trace.metadata.project_id"] == str(run.project_id)
        assert span.attributes["langfuse.trace.metadata.instance_id"] == "worker-7"
    assert [span["type"] for span in (root, model, tool)] == ["agent", "generation", "tool"]
    assert (model["model.name"], model["input"], model["output"]) == ("openai/m", messages, "Not much.")
    assert model["usage_details"] == {
        "input": 40,
        "input_cached_tokens": 60,
        "output": 15,
        "output_reasoning_tokens": 5,
        "total": 120,
    }
    assert model["completion_start_time"].startswith("20")
    assert (tool["input"], tool["output"], tool["metadata.tool_call_id"]) == ({"word": "tide"}, "It rises.", "call_1")
    assert (root["input"], root["output"]) == ("What is new?", "Not much.")
    assert (root["metadata.status"], root["metadata.attempt"], root["level"]) == ("completed", 2, None)


async def test_it_is_sent_with_the_keys_to_the_endpoint_and_shows_them_nowhere(collector: Collector) -> None:
    async with tracing_to(collector) as tracing:
        with tracing.attempt(make_run()) as tracer, tracer.tool("shell", "call_1", {"env": "sk-lf-secret"}) as step:
            step.ends("LANGFUSE_SECRET_KEY=sk-lf-secret")
    ((path, headers, body),) = collector.posts
    assert path == "/api/public/otel/v1/traces"
    assert headers["authorization"] == f"Basic {base64.b64encode(b'pk-lf-1:sk-lf-secret').decode()}"
    assert b"sk-lf-secret" not in body


async def test_failures_and_cancellations_are_marked_and_go_on(collector: Collector) -> None:
    async with tracing_to(collector) as tracing:
        with tracing.attempt(make_run()) as tracer:
            with pytest.raises(asyncio.CancelledError), tracer.generation("openai/m", []):
                raise asyncio.CancelledError
            with pytest.raises(ValueError, match="with a secret"), tracer.tool("break", "call_0", {}):
                raise ValueError("with a secret")
            with tracer.tool("refuse", "call_1", {}) as step:
                step.ends("There is no such file.", failed=True)
            tracer.ended("failed", "The model could not be reached.")
    model, broken, tool, root = (collector.named(name) for name in ("model", "break", "refuse", "agent_run"))
    assert (model["level"], model["status_message"]) == ("WARNING", "CancelledError")
    assert (tool["level"], tool["status_message"]) == ("ERROR", "There is no such file.")
    assert (broken["level"], broken["status_message"]) == ("ERROR", "ValueError")
    assert (root["level"], root["status_message"]) == ("ERROR", "The model could not be reached.")


async def test_runs_beside_each_other_keep_their_traces_apart(collector: Collector) -> None:
    async def one(tracing: Tracing, run: Run) -> None:
        with tracing.attempt(run) as tracer:
            for _ in range(3):
                with tracer.tool("step", "call", str(run.id)):
                    await asyncio.sleep(0)

    runs = [make_run() for _ in range(10)]
    async with tracing_to(collector) as tracing:
        await asyncio.gather(*(one(tracing, run) for run in runs))
    steps = [span for span in collector.spans if span.name == "step"]
    assert len(steps) == 30
    assert all(UUID(span.trace_id) == UUID(span["input"]) for span in steps)


@pytest.mark.parametrize("trouble", ["away", "silent", "refuses"])
async def test_a_langfuse_that_is_away_costs_a_run_nothing_and_the_end_a_second(
    collector: Collector, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "SEND_EVERY_MS", 50)
    monkeypatch.setattr(otlp, "CLOSE_SECONDS", 1.0)
    collector.status = 401 if trouble == "refuses" else 503
    collector.hold = threading.Event() if trouble == "silent" else None
    host = "http://127.0.0.1:1" if trouble == "away" else collector.url
    took = list[float]()
    async with open_tracing(keyed(host)) as tracing:
        for _ in range(20):
            before = time.monotonic()
            with tracing.attempt(make_run()) as tracer:
                for _ in range(50):
                    with tracer.generation("openai/m", [{"role": "user", "content": "x" * 1000}] * 20) as step:
                        step.ends("y" * 20_000)
            took.append(time.monotonic() - before)
            await asyncio.sleep(0.01)
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 5 * 1.0
    assert sorted(took)[len(took) // 2] < 1.0


async def test_without_both_keys_nobody_is_told() -> None:
    async with open_tracing(Settings(langfuse=LangfuseSettings(public_key=SecretStr("pk-only")))) as tracing:
        assert tracing is UNTRACED
        with tracing.attempt(make_run()) as tracer, tracer.generation("openai/m", []) as step:
            step.speaks()
            step.ends(object())


def test_without_keys_a_worker_carries_none_of_the_libraries() -> None:
    code = "import sys, worker; print({'langfuse', 'opentelemetry.sdk.trace', 'services.langfuse'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

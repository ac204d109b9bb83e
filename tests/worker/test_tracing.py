"""A whole run by a worker, as a collector in Langfuse's place sees it."""

from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from agent.tools import standard
from services.settings import LangfuseSettings, Settings
from services.tracing import open_tracing
from tests.agent.seeds import Counting, acts, model_settings, tool_parts
from tests.collector import Collector, send_at_the_end
from tests.fakes import FakeModel, says, wrong_key
from tests.services.runs.seeds import make_run
from tests.worker.conftest import open_process
from tests.worker.test_runner import drive


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    send_at_the_end(monkeypatch)
    with Collector() as listening:
        yield listening


@asynccontextmanager
async def traced_process(settings: Settings, fake: FakeModel, collector: Collector) -> Any:
    keys = LangfuseSettings(public_key=SecretStr("pk-lf"), secret_key=SecretStr("sk-lf-secret"), host=collector.url)
    named = settings.model_copy(update={"models": model_settings(fake).models, "langfuse": keys})
    async with open_process(named) as process, open_tracing(named) as tracing:
        yield replace(process, tracing=tracing)


async def test_a_run_with_a_tool_is_traced_whole(
    settings: Settings, redis: Redis, fake: FakeModel, collector: Collector
) -> None:
    fake.script(acts(*tool_parts(0, "act", '{"text": "now"}'), words="Wait"), says("All ", "done."))
    with patch.object(standard, "STANDARD", Counting().registry):
        async with traced_process(settings, fake, collector) as process:
            run = await make_run(process.stores.pool, model="openai/m")
            assert (await drive(process, run)).status == "completed"
    assert {span.trace_id for span in collector.spans} == {run.id.hex}
    root, tool = collector.named("agent_run"), collector.named("act")
    first, second = [span for span in collector.spans if span["type"] == "generation"]
    assert {span.parent_id for span in (first, tool, second)} == {root.span_id}
    assert first["output"] == {"content": "Wait", "tool_calls": [{"name": "act", "arguments": '{"text": "now"}'}]}
    assert (tool["input"], tool["output"]) == ({"text": "now"}, "act now done")
    assert [said["role"] for said in second["input"]][-2:] == ["assistant", "tool"]
    assert second["output"] == "All done."
    assert first["usage_details"] == {"input": 11, "output": 7, "total": 18}
    assert (root["output"], root["metadata.status"]) == ("All done.", "completed")
    assert root.attributes["session.id"] == str(run.thread_id)
    assert not [body for _, _, body in collector.posts if b"sk-test" in body or b"sk-lf-secret" in body]


async def test_a_run_that_fails_tells_its_sentence(
    settings: Settings, redis: Redis, fake: FakeModel, collector: Collector
) -> None:
    fake.script(wrong_key())
    async with traced_process(settings, fake, collector) as process:
        run = await make_run(process.stores.pool, model="openai/m")
        row = await drive(process, run)
    root, model = collector.named("agent_run"), collector.named("model")
    assert (row.status, root["metadata.status"], root["status_message"]) == ("failed", "failed", row.error)
    assert (model["level"], model["status_message"]) == ("ERROR", "RunFailed")

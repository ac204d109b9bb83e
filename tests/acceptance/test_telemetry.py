"""One run on RabbitMQ: the id of its request is on every line, in its Sentry event and in both of its traces."""

import signal
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from pydantic import SecretStr

from services.broker import make_broker, workflow_message
from services.origin import Origin
from services.settings import BrokerSettings, Settings
from tests.acceptance.client import Client, check_whole_log
from tests.acceptance.conftest import Deploy
from tests.acceptance.operators import LASTING, Deployment, Operated
from tests.acceptance.test_drain import EXIT_SECONDS
from tests.agent.seeds import acts, tool_parts
from tests.collector import Collector
from tests.fakes import FakeModel, says
from tests.waiting import eventually

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf", "LANGFUSE_SECRET_KEY": "sk-lf-secret-of-a-test", "LOG_FORMAT": "json"}
REQUEST_ID = "the-request-1"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"X-Request-ID": REQUEST_ID, "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
CALM = {**LASTING, "RUN_RESEND_AFTER": "30s"}
"""Nobody sends a message again or takes a run over because it took a moment: that would be told, too."""
BROKEN = ("break_down", '{"what": "everything"}')


async def start_failing_worker(deployment: Deployment) -> Operated:
    size = ["--processes", "1", "--threads", "4", "--skip-logging"]
    failing = deployment.launch("worker", "dramatiq", "tests.acceptance.failing_worker", *size)
    await deployment.ready(failing)
    return failing


async def start(client: Client) -> str:
    fields = {"prompt": "Break it.", "model_name": "openai/m"}
    answer = await client.http.post("/agent/initiate", data=fields, headers=HEADERS)
    assert answer.raise_for_status().headers["X-Request-ID"] == REQUEST_ID
    run_id: str = answer.json()["agent_run_id"]
    return run_id


def send_unusable(deployment: Deployment) -> None:
    """A message whose actor raises: what it names is not there."""
    broker = make_broker(Settings(broker=BrokerSettings(url=SecretStr(deployment.settings["RABBITMQ_URL"]))))
    message = workflow_message(
        execution_id=str(uuid4()),
        workflow_id=str(uuid4()),
        workflow_name="",
        triggered_by="",
        run_id=uuid4(),
        came_from=Origin("unusable"),
    )
    del message.kwargs["agent_run_id"]
    broker.enqueue(message)
    broker.close()


def lines_of(process: Operated) -> list[dict[str, Any]]:
    """All it wrote is in one format; what the interpreter says of our forks comes before there is one."""
    return [orjson.loads(line) for line in process.text.splitlines() if not line.startswith("<frozen runpy>")]


async def test_the_id_of_a_request_is_wherever_its_run_is_told_of(deploy: Deploy, fake: FakeModel) -> None:
    with Collector() as sentry, Collector() as langfuse, Collector() as spans:
        deployment = await deploy(
            workers=0,
            durations=CALM,
            SENTRY_DSN=f"{sentry.url.replace('://', '://key@')}/7",
            LANGFUSE_HOST=langfuse.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=spans.url,
            **KEYS,
        )
        worker = await start_failing_worker(deployment)
        send_unusable(deployment)
        fake.script(acts(*tool_parts(0, *BROKEN), words="Well"), says("It broke."))
        async with deployment.client() as client:
            run_id = await start(client)
            check_whole_log(await client.read(run_id), "completed")
        [api] = deployment.apis
        worker.signal(signal.SIGTERM)
        assert await worker.exited(5 * EXIT_SECONDS) == 0
        api.signal(signal.SIGTERM)
        await api.exited()

        check_lines(lines_of(api), lines_of(worker), run_id)
        check_event(sentry, run_id)
        check_traces(langfuse, spans, run_id)
        for collector in (sentry, langfuse, spans):
            assert not [body for _, _, body in collector.posts if b"sk-lf-secret" in body or b"sk-of-a-test" in body]
        assert not [body for _, _, body in (*sentry.posts, *spans.posts) if b"Break it." in body or b"It broke" in body]


def check_lines(of_api: list[dict[str, Any]], of_worker: list[dict[str, Any]], run_id: str) -> None:
    told = [line for line in of_worker if line.get("agent_run_id") == run_id]
    assert {"run.claimed", "tool.failed", "run.ended"} <= {line["event"] for line in told}
    assert {line.get("request_id") for line in told} == {REQUEST_ID}
    assert all(line["instance_id"] for line in told)
    assert not [line for line in of_worker if run_id in orjson.dumps(line).decode() and line not in told]
    mine = [line for line in of_api if line.get("request_id") == REQUEST_ID]
    assert [line["event"] for line in mine] == ["run.queued", "request.answered"]
    others = [line for line in of_api if line.get("agent_run_id") == run_id and line not in mine]
    assert {line["event"] for line in others} <= {"request.answered"}, "requests that ask for it have ids of their own"
    assert not [line for line in (*of_api, *of_worker) if "sk-xxx" in str(line)]


def check_event(sentry: Collector, run_id: str) -> None:
    unusable = [event for event in sentry.events if event["tags"].get("request_id") == "unusable"]
    assert [event["exception"]["values"][-1]["type"] for event in unusable] == ["NotFound"], "one error, one event"
    [event] = [event for event in sentry.events if event not in unusable]
    assert event["logentry"]["message"] == "tool.failed"
    assert [each["type"] for each in event["exception"]["values"]] == ["LookupError"]
    tags = event["tags"]
    assert (tags["request_id"], tags["agent_run_id"]) == (REQUEST_ID, run_id)
    assert UUID(tags["thread_id"])
    assert event["extra"]["tool"] == "break_down"
    assert "sk-xxx" not in str(event)


def check_traces(langfuse: Collector, spans: Collector, run_id: str) -> None:
    assert {span.trace_id for span in langfuse.spans} == {UUID(run_id).hex}
    assert {span.attributes["langfuse.trace.metadata.request_id"] for span in langfuse.spans} == {REQUEST_ID}
    of_run = [span for span in spans.spans if span.trace_id == TRACE_ID]
    assert {span.attributes["longrun.request_id"] for span in of_run} == {REQUEST_ID}
    by_name = {span.name: span for span in of_run}
    chain = [by_name[name] for name in ("POST /api/agent/initiate", "send agent_runs", "agent_run", "tool")]
    assert chain[0].parent_id == HEADERS["traceparent"].split("-")[2]
    assert [below.parent_id for below in chain[1:]] == [above.span_id for above in chain[:-1]]
    assert by_name["model"].parent_id == by_name["agent_run"].span_id


async def test_nothing_is_told_of_single_events(deploy: Deploy) -> None:
    deployment = await deploy(workers=1, durations=CALM, LOG_FORMAT="json")
    async with deployment.client() as client:
        run = await client.initiate("demo/lorem?chunks=200&delay_ms=1")
        events = await client.read(run.run_id)
    [api], [worker] = deployment.apis, deployment.workers
    await eventually(lambda: worker.said("run.ended") == 1)
    assert len(events) > 200
    assert api.said(run.run_id) <= 3, api.text
    assert worker.said(run.run_id) <= 5, worker.text

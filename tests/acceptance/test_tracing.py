"""A worker with Langfuse's keys: what waits is sent when it leaves, and a silent Langfuse does not hold it up."""

import signal
import threading

import pytest

from tests.acceptance.client import check_whole_log
from tests.acceptance.conftest import Deploy
from tests.acceptance.test_drain import EXIT_SECONDS
from tests.collector import Collector

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf", "LANGFUSE_SECRET_KEY": "sk-lf-secret"}


@pytest.mark.parametrize("silent", [False, True])
async def test_a_worker_tells_of_its_runs_and_leaves_in_time(deploy: Deploy, silent: bool) -> None:
    with Collector(hold=threading.Event() if silent else None) as collector:
        others = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "SENTRY_DSN": f"http://key@{collector.url[7:]}/1"}
        deployment = await deploy(workers=1, LANGFUSE_HOST=collector.url, **KEYS, **(others if silent else {}))
        async with deployment.client() as client:
            run = await client.initiate("demo/lorem?chunks=20&delay_ms=1")
            check_whole_log(await client.read(run.run_id), "completed")
        [worker] = deployment.workers
        worker.signal(signal.SIGTERM)
        assert await worker.exited(5 * EXIT_SECONDS) == 0
        assert worker.said(r"tracing\.closed_late") == (2 if silent else 0)
        assert not worker.said(r"\[error|Traceback|sk-lf-secret"), worker.text
        if not silent:
            assert {span.name for span in collector.spans} == {"agent_run", "model"}
            assert {span.trace_id for span in collector.spans} == {run.run_id.replace("-", "")}

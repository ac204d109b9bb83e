"""Readers behind nginx with the shipped configuration, before two API processes."""

import asyncio
import re
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from httpx2 import AsyncHTTPTransport, Limits

from services.embedded import ports
from tests.acceptance import readers
from tests.acceptance.client import Client
from tests.acceptance.operators import SECRET, Deployment, Operated
from tests.fakes import FakeModel
from tests.faults.load import Load
from tests.nginx import Nginx, running, upstream_of
from tests.waiting import eventually

STREAMED = re.compile(r'"GET /api/agent-run/([0-9a-f-]{36})/stream" ')
UNKNOWN = 30
"""Runs that are not there, to see where their streams would be: all at one process only once in 10^8 times."""


@dataclass
class Behind:
    """A deployment of two API processes and what stands before them."""

    nginx: Nginx
    apis: tuple[Operated, Operated]

    def client(self) -> Client:
        return Client.signed_in(self.nginx.url, SECRET)

    def http2_client(self) -> Client:
        transport = AsyncHTTPTransport(verify=False, http2=True, limits=Limits(max_connections=None))
        return Client.signed_in(self.nginx.tls_url, SECRET, transport=transport)

    @property
    def readers_of_runs(self) -> dict[str, set[str]]:
        """The API processes that answered the streams of each run."""
        found = defaultdict(set)
        for line in self.nginx.access_log:
            if match := STREAMED.search(line):
                found[match[1]].add(upstream_of(line))
        return found

    async def reader_of(self, client: Client, run_id: str) -> Operated:
        """The API process that has the streams of a run."""
        refused = await client.http.get(f"/agent-run/{run_id}/stream", params={"last_event_id": "none"})
        assert refused.status_code == 422
        (address,) = cast(set[str], await eventually(lambda: self.readers_of_runs.get(run_id)))
        return next(api for api in self.apis if address.endswith(f":{api.port}"))


@asynccontextmanager
async def behind_nginx(deployment: Deployment, folder: Path) -> AsyncIterator[Behind]:
    first, second = deployment.api, await deployment.start_api(ports.pick({deployment.port}))
    assert first
    try:
        addresses = (f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}")
        async with running(Nginx(folder, addresses)) as nginx:
            yield Behind(nginx, (first, second))
    finally:
        second.end()


@pytest.fixture
async def behind(system: Deployment, tmp_path: Path) -> AsyncIterator[Behind]:
    async with behind_nginx(system, tmp_path) as behind:
        yield behind


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_readers_behind_nginx_see_the_same_log_and_those_of_one_run_share_an_api_process(behind: Behind) -> None:
    async with behind.client() as client:
        await watch(client, readers.Plan(runs=10, at_once=10, chunks=100))
        unknown = await asyncio.gather(*(client.http.get(f"/agent-run/{uuid4()}/stream") for _ in range(UNKNOWN)))
    assert {answer.status_code for answer in unknown} == {404}
    await eventually(lambda: len(behind.readers_of_runs) == 10 + UNKNOWN, says="not every stream is in the log")
    answered = behind.readers_of_runs
    assert all(len(apis) == 1 for apis in answered.values()), answered
    assert len(set().union(*answered.values())) == 2, "one process has all readers"


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_readers_of_an_api_process_that_is_killed_go_on_at_the_other(behind: Behind, fake: FakeModel) -> None:
    talk = fake.talk()
    async with behind.client() as client:
        load = Load(client, readers=2, talk=talk)
        await load.begin(6)
        await load.flowing()
        (await behind.reader_of(client, load.watched[0].started.run_id)).signal_group(signal.SIGKILL)
        await load.flowing()
        talk.enough()
        tally = await load.finish(within=60)
    assert tally.resumes, "nobody was cut off"
    assert tally.attempts == 1


@pytest.mark.parametrize("broker", ["redis"], indirect=True, scope="session")
async def test_what_is_too_large_for_the_api_is_refused_in_its_own_words(behind: Behind) -> None:
    async with behind.client() as client:
        for size in (2 << 20, 8 << 20, 32 << 20):
            told = await client.http.post("/agents", json={"name": "x" * size})
            form = await client.http.post("/agent/initiate", data={"prompt": "x" * size})
            assert (told.status_code, form.status_code) == (413, 413), (told.text, form.text)
            assert "detail" in told.json()


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_two_hundred_runs_forty_at_a_time_behind_nginx(behind: Behind) -> None:
    async with behind.client() as client:
        await watch(client, readers.Plan(runs=200, at_once=40))


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")
async def test_readers_over_http2_see_the_same_log(behind: Behind) -> None:
    """All on one connection, which may have 128 streams at a time."""
    async with behind.http2_client() as client:
        await watch(client, readers.Plan(runs=40, at_once=20, readers=2))


async def watch(client: Client, plan: readers.Plan) -> None:
    outcomes = await readers.watch_all(client, plan)
    assert not sum(reading.cut_by_server for outcome in outcomes for reading in outcome.readings)

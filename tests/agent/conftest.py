from collections.abc import AsyncIterator, Iterator

import pytest
from httpx2 import AsyncClient

from services.http import open_client
from services.settings import Settings
from tests.agent.seeds import model_settings
from tests.fakes import FakeModel


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


@pytest.fixture
def settings(fake: FakeModel) -> Settings:
    return model_settings(fake)


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[AsyncClient]:
    client = open_client(settings)
    yield client
    await client.aclose()

"""A database of the test's own, the scripted model, and a network that includes this machine."""

import pytest
from pydantic import SecretStr

from services.settings import OutgoingSettings, PostgresSettings, Settings
from tests.agent.seeds import model_settings
from tests.conftest import NO_LIMITS
from tests.fakes import FakeModel


@pytest.fixture
def settings(fake: FakeModel, database_url: str) -> Settings:
    named = {
        "postgres": PostgresSettings(url=SecretStr(database_url), pool_min=1, pool_max=10),
        "outgoing": OutgoingSettings(allow_private=True),
        "limits": NO_LIMITS,
    }
    return model_settings(fake).model_copy(update=named)

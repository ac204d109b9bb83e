import io
import logging
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from services import log
from services.log import logger
from services.settings import LogSettings, Settings
from services.tokens import sign_access_token

TOKEN = sign_access_token("a-secret-for-these-tests-of-32-bytes-or-more", uuid4(), lifetime=timedelta(hours=1))
SECRET = "sk_0123456789abcdefghij-_0123456789"


@pytest.fixture(params=["json", "console"])
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What is logged, in the format of production and in that of development."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    log.configure(Settings(log=LogSettings(format=request.param)))
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    lines = io.StringIO()
    handler.setStream(lines)
    yield lines
    root.handlers, root.level = before, level


def test_no_credential_leaves_in_a_line_whoever_writes_it(written: io.StringIO) -> None:
    logger.info("run.claimed", token=TOKEN, headers={"authorization": f"Bearer {TOKEN}"}, key=f"pk_12:{SECRET}")
    logging.getLogger("somebody.else").warning("GET %s", f"/stream?token={TOKEN}&x=1")
    try:
        raise ValueError(f"{SECRET} and {TOKEN}")
    except ValueError:
        logger.exception("api.request_failed", path="/stream?a=1&token=secret-word")
    lines = written.getvalue()
    assert "run.claimed" in lines
    assert "pk_12" in lines
    assert "x=1" in lines
    assert "ValueError" in lines
    for part in (TOKEN, TOKEN.split(".")[1], TOKEN.split(".")[2], SECRET, "secret-word"):
        assert part not in lines


def test_a_long_line_without_credentials_is_looked_through_in_no_time() -> None:
    for text in ("eyJ" * 300_000, "token=" * 150_000, "sk_" * 300_000, "eyJ " * 200_000):
        assert len(log.without_credentials(text)) <= len(text)

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


def test_nobody_writes_a_line_of_the_log_or_to_the_terminal_by_what_they_say(written: io.StringIO) -> None:
    forged = "/x\n2026-01-01 [info     ] run.ended\r\x1b[2J\x9b2J\x00\x7f\u2028\u202e"
    logger.info("api.asked", path=forged, ids=[forged], **{"a b": forged})
    logging.getLogger("somebody.else").warning("GET %s", forged)
    lines = written.getvalue().removesuffix("\n").split("\n")
    assert len(lines) == 2
    assert all("2026-01-01" in line for line in lines)
    assert not set("".join(lines)) & set("\r\x1b\x9b\x00\x7f\u2028\u202e")


def test_handlers_of_others_keep_their_format_and_write_no_credential() -> None:
    theirs, lines = logging.getLogger("somebody.with.handlers"), io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logging.Formatter("theirs: %(message)s"))
    theirs.handlers, theirs.propagate = [handler], False
    for _ in range(2):
        log.make_harmless("somebody.with.handlers")
    try:
        raise ValueError(f"\x1b[2J {SECRET}")
    except ValueError:
        theirs.exception("GET /x?token=%s", TOKEN)
    assert lines.getvalue().startswith("theirs: GET /x?token=[hidden]\nTraceback")
    assert r"\x1b[2J [hidden]" in lines.getvalue()
    assert SECRET not in lines.getvalue()


def test_a_long_line_without_credentials_is_looked_through_in_no_time() -> None:
    for text in ("eyJ" * 300_000, "token=" * 150_000, "sk_" * 300_000, "eyJ " * 200_000):
        assert len(log.without_credentials(text)) <= len(text)

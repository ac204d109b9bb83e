import contextvars
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextvars import copy_context
from datetime import timedelta
from uuid import uuid4

import orjson
import pytest
from structlog.contextvars import clear_contextvars

from services import log
from services.log import logger
from services.settings import LogSettings, Settings
from services.tokens import sign_access_token
from tests.collector import Collector
from tests.services import uncaught

TOKEN = sign_access_token("a-secret-for-these-tests-of-32-bytes-or-more", uuid4(), lifetime=timedelta(hours=1))
SECRET = "sk_0123456789abcdefghij-_0123456789"


@pytest.fixture(params=["json", "console"])
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What is logged, in the format of production and in that of development."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    log.configure(Settings(log=LogSettings(format=request.param)))
    (handler,) = root.handlers
    lines = io.StringIO()
    root.handlers = [logging.StreamHandler(lines)]
    root.handlers[0].setFormatter(handler.formatter)
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


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    """A logger that is not ours, as uvicorn's are."""
    theirs = logging.getLogger("somebody.with.handlers")
    yield theirs
    theirs.handlers, theirs.propagate = [], True


def test_what_writes_by_handlers_of_its_own_writes_by_ours(written: io.StringIO, library: logging.Logger) -> None:
    elsewhere = io.StringIO()
    library.handlers, library.propagate = [logging.StreamHandler(elsewhere)], False
    for _ in range(2):
        log.adopt(library.name)
    try:
        raise ValueError(f"\x1b[2J {SECRET}")
    except ValueError:
        library.exception("GET /x?token=%s", TOKEN)
    assert not elsewhere.getvalue()
    lines = written.getvalue()
    assert "GET /x?token=[hidden]" in lines
    assert library.name in lines
    assert "Traceback" in lines
    assert SECRET not in lines


def test_what_was_told_to_be_silent_stays_silent(written: io.StringIO, library: logging.Logger) -> None:
    library.propagate = False
    log.adopt(library.name)
    library.error("as uvicorn's access log with --no-access-log")
    assert not written.getvalue()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("https://h/x?access_token=hush-hush&y=1", "https://h/x?access_token=[hidden]&y=1"),
        ("{'Authorization': 'Basic aHVzaDpodXNo'}", "{'Authorization': '[hidden]'}"),
        ("authorization=Negotiate,hush", "authorization=[hidden],hush"),
        ("Bearer hush-hush-hush-hush", "Bearer [hidden]"),
        ("a bearer of news", "a bearer of news"),
        (r"keys:\nsk_0123456789abcdefghij\teyJhbGciOi.eyJzdWIi", r"keys:\n[hidden]\t[hidden]"),
        (r"\u0001sk-0123456789abcdefghij \\nwhsec_aHVzaGh1c2g=", r"\u0001[hidden] \\n[hidden]"),
        ("task-sk_0123456789abcdefghij", "task-sk_0123456789abcdefghij"),
        ("whsec_aHVzaGh1c2g=", "[hidden]"),
        ("pk_12:sk_0123456789abcdef", "pk_12:[hidden]"),
        ("sk-ant-0123456789abcdef", "[hidden]"),
        ("postgresql://ann:hush@db/longrun", "postgresql://[hidden]@db/longrun"),
        ("http://db:5432/a@b", "http://db:5432/a@b"),
        ("X-API-Key: hush", "X-API-Key: [hidden]"),
        ("password='hush'", "password='[hidden]'"),
        ("tokens=12 api_keys", "tokens=12 api_keys"),
    ],
)
def test_the_shapes_of_credentials_are_known(said: str, kept: str) -> None:
    assert log.without_credentials(said) == kept


def test_json_of_headers_keeps_its_shape(written: io.StringIO) -> None:
    logger.info("api.asked", headers=[["authorization", "x"], {"authorization": "Digest hush, b"}], password="hush")
    assert "hush" not in written.getvalue().replace("[hidden]", "")
    if written.getvalue().startswith("{"):
        orjson.loads(written.getvalue())


def test_lines_about_a_run_say_the_same_wherever_in_its_process_they_are_written(written: io.StringIO) -> None:
    words: dict[str, str | int] = {"agent_run_id": "run-1", "request_id": "request-1", "attempt": 2}
    with log.telling_of("run-1", words):
        logger.info("run.claimed")
        copy_context().run(clear_contextvars)
        contextvars.Context().run(logger.warning, "lease.lost", agent_run_id="run-1", attempt=1)
        contextvars.Context().run(logger.warning, "lease.lost", agent_run_id="run-2")
    logger.info("run.ended", agent_run_id="run-1")
    claimed, lost, other, ended = written.getvalue().strip().split("\n")
    assert "request-1" in claimed
    assert "request-1" in lost
    assert re.search(r"attempt\W+1\b", lost), "what a line says itself counts"
    assert "request-1" not in other + ended


def test_nothing_that_a_line_holds_keeps_it_from_being_written(written: io.StringIO) -> None:
    logger.info("odd.line", half="\ud800", huge=2**70, inner={1: object(), None: {"a"}, (1, 2): b"x"})
    assert "odd.line" in written.getvalue()


def test_a_long_line_without_credentials_is_looked_through_in_no_time() -> None:
    for part in ("eyJ", "token=", "sk_", "eyJ ", "://", "://a:", "api", "password", "api_key=", "Bearer ", "key':"):
        text = part * (900_000 // len(part))
        assert len(log.without_credentials(text)) <= len(text)


def say_uncaught(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", uncaught.__name__, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_what_nobody_caught_is_a_line_like_any_other_and_an_event_each() -> None:
    with Collector() as sentry:
        done = say_uncaught(SENTRY_DSN=f"{sentry.url.replace('://', '://key@')}/7")
        events = sentry.events
    assert done.returncode == 1
    lines = {line["event"].partition(":")[0]: line for line in map(orjson.loads, done.stderr.splitlines())}
    [warning] = [line for line in lines.values() if line.get("logger") == "py.warnings"]
    assert "a warning" in warning["event"]
    for event, error in UNCAUGHT.items():
        assert f"{error}: " in lines[event]["exception"]
    assert lines["thread.failed"]["thread"] == "publisher"
    assert uncaught.SECRET not in done.stderr
    told = [(event["logentry"]["message"], event["exception"]["values"][-1]["type"]) for event in events]
    assert sorted(told) == sorted(UNCAUGHT.items()), "one error, one event, told before the process is gone"
    assert uncaught.SECRET not in str(events)


def test_what_ends_a_command_that_logs_nothing_is_told_by_the_interpreter() -> None:
    done = say_uncaught("silent")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: in the main thread:\nthe end\n")


UNCAUGHT = {"thread.failed": "LookupError", "process.unraisable": "ValueError", "process.failed": "RuntimeError"}

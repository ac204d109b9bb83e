"""What leaves for Sentry, and what does not."""

import logging
import subprocess
import sys
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from structlog.contextvars import bound_contextvars

from services import sentry
from services.log import logger, telling_of
from services.settings import SentrySettings, Settings

SETTINGS = Settings(sentry=SentrySettings(dsn=SecretStr("https://key@sentry.example/1")))


def sent(event: dict[str, Any]) -> dict[str, Any]:
    scrubbed: Any = sentry.Scrubber(SETTINGS).event(event, {})  # type: ignore[arg-type]
    assert scrubbed
    return dict(scrubbed)


def test_of_a_request_nothing_leaves_but_its_method_and_its_path() -> None:
    request = {
        "method": "POST",
        "url": "http://h/api/agent/initiate?token=hush",
        "query_string": "token=hush",
        "headers": {"authorization": "hush"},
        "cookies": {"a": "hush"},
        "data": {"prompt": "hush"},
        "env": {"REMOTE_ADDR": "hush"},
    }
    contexts = {"dramatiq": {"data": {"kwargs": {"variables": "hush"}}}, "runtime": {"name": "CPython"}}
    event = sent({"request": request, "user": {"ip_address": "hush"}, "contexts": contexts})
    assert event["request"] == {"method": "POST", "url": "http://h/api/agent/initiate"}
    assert event["contexts"] == {"runtime": {"name": "CPython"}}
    assert "hush" not in str(event)


def test_no_credential_leaves_wherever_it_stands() -> None:
    pepper = SETTINGS.api_keys.pepper.get_secret_value()
    words = (
        f"Bearer {'x' * 40} at postgresql://ann:hush-hush@db/x with {pepper} and whsec_hushhush\nDETAIL: (ann@x.org)"
    )
    event = sent({"exception": {"values": [{"type": "E", "value": words}]}, "extra": {"a": [{"b": words}]}, "n": 1})
    for secret in ("hush", pepper, "x" * 40, "ann@x.org"):
        assert secret not in str(event)
    assert event["n"] == 1


def test_what_is_long_or_deep_or_odd_is_bounded() -> None:
    deep: Any = "end"
    for _ in range(100):
        deep = [deep]
    event = sent({"extra": {"long": "x" * 100_000, "deep": deep, "odd": object()}})
    assert len(str(event)) < 10_000


def test_an_event_has_the_ids_of_its_line_and_of_its_context(caplog: pytest.LogCaptureFixture) -> None:
    with telling_of("run-1", {"agent_run_id": "run-1", "request_id": "req-1", "workflow_id": "w-1"}):
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("tool.failed", tool="look_up")
            made, hint = sentry.as_event(caplog.records[-1])  # as a handler does, at once
        event = sent(dict(made))
    assert (event["level"], event["logentry"]["message"]) == ("error", "tool.failed")
    assert event["exception"]["values"][0]["type"] == "ValueError"
    assert hint["exc_info"][0] is ValueError
    assert event["tags"]["request_id"] == "req-1"
    assert event["tags"]["agent_run_id"] == "run-1"
    assert event["tags"]["workflow_id"] == "w-1"
    assert event["extra"] == {"tool": "look_up"}


def test_an_error_without_an_exception_and_one_of_a_library_are_events_too(caplog: pytest.LogCaptureFixture) -> None:
    with bound_contextvars(request_id="req-1"):
        logger.error("worker.closed_late", seconds=8)
        logging.getLogger("somebody.else").error("could not %s", "write")
    ours, theirs = (sentry.as_event(record)[0] for record in caplog.records[-2:])
    assert (ours["logentry"]["message"], ours["extra"]) == ("worker.closed_late", {"seconds": 8})
    assert ours["tags"]["request_id"] == "req-1"
    assert (theirs["logentry"]["message"], theirs["logger"]) == ("could not write", "somebody.else")


@pytest.mark.parametrize(
    "said", ["sentry.example", "https://sentry.example/1", "https://key@sentry.example/", "ftp://k@h/1"]
)
def test_what_is_no_dsn_is_refused_at_start(said: str) -> None:
    with pytest.raises(ValidationError, match="DSN"):
        SentrySettings(dsn=SecretStr(said))


@pytest.mark.parametrize("module", ["worker", "api.app"])
def test_without_a_dsn_and_a_collector_nothing_of_them_is_imported(module: str) -> None:
    heavy = {"sentry_sdk", "services.sentry", "opentelemetry.sdk.trace", "services.otlp", "services.spans"}
    code = (
        f"import sys, {module}\nif {module!r} == 'api.app': api.app.create_app()\nprint({heavy!r} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

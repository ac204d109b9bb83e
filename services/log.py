"""structlog: JSON in production, readable in development; one pipeline for our lines and the libraries'."""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

import orjson
import structlog

from services.settings import Settings

logger: structlog.stdlib.BoundLogger = structlog.get_logger("longrun")

CREDENTIAL = re.compile(
    r"""(?:(?<![\w-])|(?<=\\[nrtbf])|(?<=\\u[0-9a-f]{4}))(?:eyJ[\w-]+\.[\w.-]+|sk[_-][\w-]{16,}|whsec_[\w+/=-]{8,})"""
    r"""|(?<=token=)[^&\s"']+"""
    r"""|(?<=://)[^\s/@:"']{0,256}:[^\s/@"']{1,512}(?=@)"""
    r"""|(?:(?<=[Bb]earer )|(?<=[Bb]asic ))[\w.~+/=-]{16,}""",
    re.ASCII,
)
"""A token, a secret key (an API key's secret half too), a webhook's secret, whatever stands in a query for a token, the
user and password of a URL, and what follows Bearer or Basic. A line break before it may be an escape by now."""
NAMED = re.compile(
    r"""((?:authorization|x-api-key|api[_-]?key|passw(?:or)?d|client[_-]secret|secret[_-]key)"""
    r"""(?:[\\"']{1,3}\s{0,4}[:=,]|\s{0,4}[:=])\s{0,4}(?:b(?=[\\"']))?)"""
    r"""(?:([\\"']{1,3})[^"'\\]{1,4096}|(?:\w{1,16} )?(?:\[hidden]|[^\s\\"',;&)}\]]+))""",
    re.ASCII | re.IGNORECASE,
)
"""What stands beside the name of a secret, in JSON, a repr or a query."""
HINTS: tuple[str, ...] = (
    "eyJ",
    "sk_",
    "sk-",
    "whsec_",
    "token=",
    "://",
    "earer ",
    "asic ",
    "uthorization",
    "UTHORIZATION",
)
HINTS += (
    "_key",
    "-key",
    "-Key",
    "_KEY",
    "-KEY",
    "pikey",
    "piKey",
    "passw",
    "Passw",
    "PASSW",
    "t_secret",
    "T_SECRET",
    "t-secret",
)
"""One of them is in every text that has a credential; to look for them costs a tenth of the patterns."""
HIDDEN = "[hidden]"


def without_credentials(text: str) -> str:
    if not any(map(text.__contains__, HINTS)):
        return text
    return NAMED.sub(rf"\1\2{HIDDEN}", CREDENTIAL.sub(HIDDEN, text))


CONTROL = {
    code: repr(chr(code))[1:-1]
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}
"""What moves a terminal's cursor, colours it or turns the direction of a line, as it is written in source."""


class Formatter(structlog.stdlib.ProcessorFormatter):
    """The last thing that sees a line: whoever wrote it, no credential leaves in it, and nothing that is not text."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def harmless(line: str) -> str:
    return without_credentials(line).translate(CONTROL)


def on_one_line(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a library says in words may have somebody else's in it, which must not look like a line of its own."""
    event["event"] = str(event["event"]).replace("\r", "\\r").replace("\n", "\\n")
    return event


process_words: dict[str, str] = {}
"""What every line of this process says, unless it says otherwise."""


run_words: dict[str, Mapping[str, str | int]] = {}
"""What lines about a run say besides its id, while this process drives it: what sees to many runs knows no more."""


@contextmanager
def telling_of(agent_run_id: str, words: Mapping[str, str | int]) -> Iterator[None]:
    """Until it is left, lines from here, and lines with the run's id from anywhere in the process, say these words."""
    run_words[agent_run_id] = words
    try:
        with structlog.contextvars.bound_contextvars(**words):
            yield
    finally:
        if run_words.get(agent_run_id) is words:
            del run_words[agent_run_id]


def name_process(instance_id: str) -> None:
    """Let every line say which process wrote it, as soon as that has a name."""
    process_words["instance_id"] = instance_id


def add_words(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    known = run_words.get(event["agent_run_id"], {}) if "agent_run_id" in event else {}
    return {**process_words, **known, **event}


def dump(event: object, **_: object) -> str:
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a surrogate pair, or a number of more than 64 bits
        return json.dumps(event, default=repr, skipkeys=True)


class ToStderr(logging.StreamHandler[TextIO]):
    """To what stderr is when a line is written: whoever takes it over may have closed the one before."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure(settings: Settings) -> None:
    """Route structlog and the standard library's logging to stderr in one format."""
    as_json = settings.log.format == "json" or (settings.log.format == "auto" and settings.production)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_words,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(serializer=dump)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    tracebacks: list[structlog.typing.Processor] = [structlog.processors.format_exc_info] if as_json else []
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = ToStderr()
    handler.setFormatter(
        Formatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, on_one_line],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tracebacks, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log.level.upper())
    adopt("uvicorn", "uvicorn.error", "uvicorn.access")
    for noisy in ("pika", "httpx2", "httpcore2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    heed_uncaught()


def heed_uncaught() -> None:
    """Have warnings, and what nobody caught, written as lines; the hooks of somebody else stay."""
    logging.captureWarnings(True)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = tell_of_the_end
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = tell_of_a_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = tell_of_the_unraisable


def tell_of_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of a command that logs nothing, or was interrupted, as the interpreter does."""
    if issubclass(kind, KeyboardInterrupt) or not logging.getLogger().isEnabledFor(logging.CRITICAL):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("process.failed", exc_info=(kind, error, trace))


def tell_of_a_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_type is not SystemExit:
        name = told.thread.name if told.thread else None
        logger.error("thread.failed", thread=name, exc_info=(told.exc_type, told.exc_value, told.exc_traceback))


def tell_of_the_unraisable(told: "sys.UnraisableHookArgs") -> None:
    exc_info = told.exc_type, told.exc_value, told.exc_traceback
    logger.error("process.unraisable", where=repr(told.object), exc_info=exc_info)


def adopt(*names: str) -> None:
    """Have what loggers write by handlers of their own written by ours; one without any is silent on purpose."""
    for library in map(logging.getLogger, names):
        if library.handlers:
            library.handlers, library.propagate = [], True


def silence() -> None:
    """For commands that answer in sentences of their own: nothing is logged."""
    logging.disable(logging.CRITICAL)
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())

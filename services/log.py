"""structlog: JSON in production, readable in development; one pipeline for our lines and the libraries'."""

import logging
import re
import sys

import structlog

from services.settings import Settings

logger: structlog.stdlib.BoundLogger = structlog.get_logger("longrun")

CREDENTIAL = re.compile(r"(?<![\w-])(?:eyJ[\w-]+\.[\w.-]+|sk_[\w-]{16,})|(?<=token=)[^&\s\"']+", re.ASCII)
"""A token, the secret half of an API key, and whatever stands in a query for a token."""
HIDDEN = "[hidden]"


def without_credentials(text: str) -> str:
    return CREDENTIAL.sub(HIDDEN, text)


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


class Harmless(logging.Formatter):
    """What another formatter makes of a line, for handlers that are not ours, as uvicorn's: its tracebacks too."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return harmless(self.inner.format(record))


def harmless(line: str) -> str:
    return without_credentials(line).translate(CONTROL)


def on_one_line(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a library says in words may have somebody else's in it, which must not look like a line of its own."""
    event["event"] = str(event["event"]).replace("\r", "\\r").replace("\n", "\\n")
    return event


def configure(settings: Settings) -> None:
    """Route structlog and the standard library's logging to stderr in one format."""
    as_json = settings.log.format == "json" or (settings.log.format == "auto" and settings.production)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        Formatter(
            foreign_pre_chain=[*shared, on_one_line],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tracebacks, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log.level.upper())
    make_harmless("uvicorn", "uvicorn.error", "uvicorn.access")
    for noisy in ("pika", "httpx2", "httpcore2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def make_harmless(*names: str) -> None:
    """What loggers write by handlers of their own."""
    for handler in (handler for name in names for handler in logging.getLogger(name).handlers):
        if not isinstance(handler.formatter, Harmless):
            handler.setFormatter(Harmless(handler.formatter or logging.Formatter()))


def silence() -> None:
    """For commands that answer in sentences of their own: nothing is logged."""
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

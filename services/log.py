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


class Formatter(structlog.stdlib.ProcessorFormatter):
    """The last thing that sees a line: no credential leaves in it, whoever wrote it."""

    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record))


class WithoutCredentials(logging.Filter):
    """For loggers that have handlers of their own, as uvicorn's: the paths in their lines have queries."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(without_credentials(arg) if isinstance(arg, str) else arg for arg in record.args)
        return True


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
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tracebacks, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log.level.upper())
    for name in ("uvicorn.access", "uvicorn.error"):
        served = logging.getLogger(name)
        served.filters = [each for each in served.filters if not isinstance(each, WithoutCredentials)]
        served.addFilter(WithoutCredentials())
    for noisy in ("pika", "httpx2", "httpcore2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def silence() -> None:
    """For commands that answer in sentences of their own: nothing is logged."""
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

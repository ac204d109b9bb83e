"""Everything that nobody catches: `python -m tests.services.uncaught [silent]`, with SENTRY_DSN or without."""

import sys
import threading
import warnings

from services import log, reporting
from services.settings import LogSettings, SentrySettings, Settings

SECRET = "sk_0123456789abcdefghij-_0123456789"


class Odd:
    def __del__(self) -> None:
        raise ValueError(f"in a finalizer: {SECRET}")


def fail() -> None:
    raise LookupError(f"in a thread:\n{SECRET}")


def main(silent: bool) -> None:
    settings = Settings(log=LogSettings(format="json"), sentry=SentrySettings())
    log.configure(settings)
    reporting.start(settings)
    if silent:
        log.silence()
    warnings.warn(f"a warning:\n{SECRET}", stacklevel=1)
    thread = threading.Thread(target=fail, name="publisher")
    thread.start()
    thread.join()
    Odd()
    raise RuntimeError("in the main thread:\nthe end")


if __name__ == "__main__":
    main("silent" in sys.argv)

"""Settings that tests change a part of: to read all names from the environment takes 50 ms each time."""

from functools import cache
from typing import Any

from services.settings import Settings


@cache
def read() -> Settings:
    return Settings()


def settings_with(**sections: Any) -> Settings:
    """As the environment names them, but for these sections."""
    return read().model_copy(update=sections)

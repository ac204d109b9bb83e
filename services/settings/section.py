"""A section of the settings, and the durations in it."""

from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

LONGEST_SECONDS = 1e9
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> Any:
    """Turn `15`, `"0.5"`, `"150ms"`, `"6h"` into a timedelta; anything else is left to pydantic."""
    if isinstance(value, int | float):
        return timedelta(seconds=value)
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    for unit in sorted(UNIT_SECONDS, key=len, reverse=True):
        number = text.removesuffix(unit)
        if number != text and is_number(number):
            return timedelta(seconds=float(number) * UNIT_SECONDS[unit])
    return timedelta(seconds=float(text)) if is_number(text) else value


def is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < LONGEST_SECONDS
    except ValueError:
        return False


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(0))]
Span = Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(milliseconds=1))]
"""A duration of which nothing would be left to do its work in: a loop would spin, a key be gone at once."""


class Section(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, env_file=".env", extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

"""A worker with one more tool, which breaks as a bug of ours would have it."""

from typing import Any

import worker as worker
from agent.tools import standard
from agent.tools.base import Registry, tool


@tool()
async def break_down(_calling: Any, what: str) -> str:
    """Break down."""
    raise LookupError(f"no such thing: sk-{'x' * 20}")


standard.STANDARD = Registry.of([*standard.STANDARD, break_down])

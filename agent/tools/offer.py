"""Which tools a run offers its model, and in which form."""

from agent.catalog import split
from agent.context import RunContext
from agent.models import look_up
from agent.tools.base import Registry
from agent.tools.standard import STANDARD

NATIVE = frozenset({"openai", "openrouter", "groq", "anthropic"})
"""Providers whose models take tools in the request; a server of one's own may refuse them: its prompt tells of them."""
UNAWARE = frozenset({"demo"})


def of_run(ctx: RunContext) -> Registry:
    return STANDARD if ctx.tools is None else ctx.tools


def natively(model: str) -> bool:
    return split(model)[0] in NATIVE and look_up(model).tools


def in_prompt(model: str) -> bool:
    return split(model)[0] not in UNAWARE and not natively(model)

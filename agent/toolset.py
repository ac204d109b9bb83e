"""Which tools a run has. Pure."""

from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

from agent.tools import builder, conversation, standard
from agent.tools.base import Registry
from services.agent_versions import AgentVersion

Mode = Literal["builder", "custom", "full"]
TALK = (conversation.ask, conversation.complete, conversation.expand_message)
BUILDER = Registry.of((*TALK, builder.update_agent, builder.create_schedule))


def mode_of(run_settings: Mapping[str, Any], version: AgentVersion | None) -> Mode:
    if run_settings.get("is_agent_builder") and run_settings.get("target_agent_id"):
        return "builder"
    return "custom" if version else "full"


def choose(run_settings: Mapping[str, Any], version: AgentVersion | None) -> Registry:
    """A run that builds an agent has the tool for that; a run of an agent those that it enables; any other run all.

    The tools that speak to the person are always there, and those that the steps of its workflow name. Names in
    `agentpress_tools` that no group has are ignored.
    """
    mode = mode_of(run_settings, version)
    if mode == "builder":
        return BUILDER
    if version is None:
        return standard.STANDARD
    enabled = (tools for name, tools in standard.GROUPS.items() if is_on(version.agentpress_tools.get(name)))
    named = frozenset(run_settings.get("workflow_tools") or ())
    asked = (known for known in chain.from_iterable(standard.GROUPS.values()) if known.name in named)
    return Registry.of((*standard.ALWAYS, *chain.from_iterable(enabled), *asked))


def is_on(switch: Any) -> bool:
    """A group is enabled by `true` or by `{"enabled": true, …}`."""
    return switch.get("enabled") is True if isinstance(switch, dict) else switch is True

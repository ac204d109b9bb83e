"""The three modes: which tools a run has."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest

from agent import toolset
from agent.tools import standard
from services.agent_versions import AgentVersion
from tests.agent.seeds import Counting

ALWAYS = {"ask", "complete", "web_browser_takeover", "expand_message", "task_list"}
BUILDS = {"is_agent_builder": True, "target_agent_id": str(uuid4())}


@pytest.fixture(autouse=True)
def groups() -> Iterator[None]:
    """Two groups of tools that agents may have."""
    known = Counting().registry.tools
    groups = {"sb_shell_tool": (known["act"], known["look"]), "sb_files_tool": (known["refuse"],)}
    with patch.object(standard, "GROUPS", groups):
        yield


def version(**agentpress_tools: Any) -> AgentVersion:
    return AgentVersion(uuid4(), uuid4(), 1, "v1", "", [], [], agentpress_tools, None, datetime.now(UTC))


def names(settings: dict[str, Any], chosen: AgentVersion | None) -> set[str]:
    return {tool.name for tool in toolset.choose(settings, chosen)}


def test_a_run_without_an_agent_has_everything() -> None:
    assert names({}, None) == {tool.name for tool in standard.STANDARD}
    assert names({"is_agent_builder": False, "target_agent_id": None}, None) >= ALWAYS


@pytest.mark.parametrize("on", [True, {"enabled": True, "description": "Commands"}, {"enabled": True}])
@pytest.mark.parametrize("off", [False, {"enabled": False}, {"description": "x"}, None, "true", 1])
def test_a_run_of_an_agent_has_what_it_enables_and_the_tools_that_speak_to_the_person(on: Any, off: Any) -> None:
    chosen = version(sb_shell_tool=on, sb_files_tool=off, data_providers_tool=True)
    assert names({}, chosen) == ALWAYS | {"act", "look"}


def test_an_agent_that_enables_nothing_can_still_speak_to_the_person() -> None:
    assert names({}, version()) == ALWAYS


def test_a_run_that_builds_an_agent_has_only_the_tool_for_that() -> None:
    assert names(BUILDS, None) == {"update_agent", "create_schedule", "ask", "complete", "expand_message"}
    assert names(BUILDS, version(sb_shell_tool=True)) == names(BUILDS, None)


def test_the_tool_that_builds_agents_is_no_other_run_s() -> None:
    assert "update_agent" not in names({}, None) | names({}, version(update_agent=True))

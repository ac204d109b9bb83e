import re
from argparse import ArgumentParser
from pathlib import Path

import pytest

from services.admin.cli import parser

ROOT = Path(__file__).parents[1]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
PAGES = ("README.md", "docs/operations.md", "docs/runbook.md", "docs/deploy/README.md")
COMMAND = re.compile(r"(?:\./dev admin|-m services\.admin) ([a-z][a-z-]*)(?: ([a-z]+))?([^\n`#]*)")


def test_each_alert_has_its_section_and_no_section_is_of_an_alert_that_is_gone() -> None:
    rules = (ROOT / "docs/observability/alerts.yml").read_text()
    alerts = set(re.findall(r"^\s*- alert: (\w+)$", rules, re.M))
    sections = set(re.findall(r"^### (Longrun\w+)$", RUNBOOK, re.M))
    assert alerts
    assert sections == alerts


def test_each_alert_says_what_to_look_at_and_what_to_do() -> None:
    for section in re.split(r"^### ", RUNBOOK, flags=re.M)[1:]:
        if section.startswith("Longrun"):
            assert "\n- Look:" in section
            assert "\n- Do:" in section


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_exists_with_its_options(page: str) -> None:
    known = commands()
    shown = COMMAND.findall((ROOT / page).read_text())
    assert shown
    for group, command, rest in shown:
        assert group in known, group
        if not (command or rest.strip()):
            continue  # a sentence about the group
        options = known[group].get(command if command in known[group] else "")
        assert options is not None, (group, command)
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, (group, command, rest)


def commands() -> dict[str, dict[str, set[str]]]:
    """The options of each group's commands; of a group that is a command itself, by an empty name."""
    return {name: inner(group) or {"": options_of(group)} for name, group in inner_parsers(parser()).items()}


def inner(group: ArgumentParser) -> dict[str, set[str]]:
    return {name: options_of(command) for name, command in inner_parsers(group).items()}


def inner_parsers(outer: ArgumentParser) -> dict[str, ArgumentParser]:
    return {
        name: found
        for action in outer._actions
        if isinstance(action.choices, dict)
        for name, found in action.choices.items()
    }


def options_of(command: ArgumentParser) -> set[str]:
    return {option for action in command._actions for option in action.option_strings}

import re
from pathlib import Path

from services.admin.cli import parser

ROOT = Path(__file__).parents[1]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
COMMAND = re.compile(r"\./dev admin ([a-z-]+)(?: ([a-z]+))?")


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


def test_every_command_of_the_runbook_exists() -> None:
    known = commands()
    for group, command in COMMAND.findall(RUNBOOK):
        assert group in known, group
        assert not (known[group] and command) or command in known[group], (group, command)


def commands() -> dict[str, list[str]]:
    """The commands of each group; none where the group is one itself."""
    [groups] = [action for action in parser()._actions if hasattr(action, "choices") and action.choices]
    found = {}
    for name, group in groups.choices.items():  # type: ignore[union-attr]
        inner = [list(action.choices) for action in group._actions if type(action).__name__ == "_SubParsersAction"]
        found[name] = inner[0] if inner else []
    return found

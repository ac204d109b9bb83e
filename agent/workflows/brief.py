"""A workflow as a task for an agent, which does it in its own way."""

from collections.abc import Mapping
from typing import Any

import orjson

from agent.workflows.definition import Definition, Step
from agent.workflows.placeholders import OPENING
from services.messages import NewMessage

BRIEF = """\
Carry out this workflow: {name}
{description}
Its steps, in the order in which they are meant; `next_steps` says what follows what. Use your tools for them, decide \
where a step leaves you a choice, and say at the end what came of each.

{steps}

Variables, which the steps call by name:
{variables}
"""
MAX_CHARS = 150_000
PLAIN = frozenset({"accept", "content-type"})
NOT_TOLD = "(not told)"


def brief(name: str, description: str, definition: Definition, variables: Mapping[str, Any]) -> NewMessage:
    """The first message of an execution that is not deterministic."""
    steps = "\n".join(line(number, step) for number, step in enumerate(definition.steps, 1))
    said = BRIEF.format(name=name, description=description, steps=steps, variables=as_json(variables))
    return NewMessage("user", {"role": "user", "content": said[:MAX_CHARS]})


def line(number: int, step: Step) -> str:
    described = f" — {step.description}" if step.description else ""
    then = f" next_steps: {', '.join(step.next_steps)}." if step.next_steps else ""
    return f"{number}. {step.id} ({step.type}): {step.title}{described}. {as_json(shown(step))}{then}"


def shown(step: Step) -> Mapping[str, Any]:
    """The config without headers that are written out: they may be secret, and whoever reads the thread reads this."""
    headers = step.config.get("headers")
    if step.type != "WEBHOOK" or not isinstance(headers, dict):
        return step.config
    told = {name: value if is_told(name, value) else NOT_TOLD for name, value in headers.items()}
    return {**step.config, "headers": told}


def is_told(name: str, value: str) -> bool:
    return name.lower() in PLAIN or OPENING in value


def as_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def tools(definition: Definition) -> list[str]:
    """The tools that its steps name: an agent that carries it out has them, whatever else it has."""
    named = {str(step.config.get("tool")) for step in definition.steps if step.type == "TOOL"}
    return sorted(name.replace("-", "_") for name in named)

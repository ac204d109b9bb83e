"""The variables that an execution begins with, as its INPUT steps ask for them. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from agent.workflows.configs import InputConfig, Variable, fits
from agent.workflows.definition import Definition
from services.fields import LARGEST_INTEGER

PAYLOAD = "payload"


class BadInput(Exception):
    """A variable that is missing or has the wrong type; `name` is which."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(f"{name} {words}")
        self.name = name


def read(definition: Definition, given: Mapping[str, Any]) -> dict[str, Any]:
    """The variables given, with the defaults of those that are not; null counts as not given. Raises: BadInput."""
    found = dict(given)
    for variable in asked(definition):
        value = given.get(variable.name)
        if value is None and variable.default is None and variable.required:
            raise BadInput(variable.name, "is required")
        found[variable.name] = variable.default if value is None else typed(variable, value)
    return found


def of_webhook(definition: Definition, fields: Mapping[str, Any], payload: Any) -> dict[str, Any]:
    """What a webhook gives: the variables that are asked for, from its fields by name, and all of it under one name.

    Nothing else that a stranger sends becomes a variable.
    """
    named = {variable.name: fields[variable.name] for variable in asked(definition) if variable.name in fields}
    return {**named, payload_name(definition): payload}


def payload_name(definition: Definition) -> str:
    """As a WEBHOOK trigger says."""
    named = (trigger.config.get("payload") for trigger in definition.triggers if trigger.is_webhook)
    return str(next(filter(None, named), PAYLOAD))


def asked(definition: Definition) -> Iterator[Variable]:
    for step in definition.steps:
        if isinstance(step.told, InputConfig):
            yield from step.told.variables


def typed(variable: Variable, value: Any) -> Any:
    if not fits(value, variable.type):
        raise BadInput(variable.name, f"must be of type {variable.type}")
    if variable.type != "integer":
        return value
    if abs(value) >= LARGEST_INTEGER:
        raise BadInput(variable.name, "must have at most 64 bits")
    return int(value)

"""Whether a definition can be executed: what is wrong with it, step by step. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from agent.workflows import graph, placeholders
from agent.workflows.configs import CONFIGS
from agent.workflows.definition import MAX_CONFIG_BYTES, Definition, Step
from agent.workflows.graph import Graph, Node
from services.postgres import dump_json

MAX_DEPTH = 5
MAX_WEIGHT = 200_000
"""Of all expressions of a definition: whoever reads it does nothing else for that long, about half a second."""
BARE = frozenset({"CONDITION", "LOOP", "TRANSFORM"})
"""Types whose texts are expressions without braces."""


@dataclass(frozen=True, slots=True)
class Problem:
    """`place` is the way to a field of the definition, as in FastAPI's errors; `words` name the step."""

    place: tuple[str | int, ...]
    words: str


def problems(definition: Definition) -> list[Problem]:
    """All that is wrong; the graph is judged once every step is right by itself. A definition may be without steps."""
    if sum(map(weight, definition.steps)) > MAX_WEIGHT:
        return [Problem(("steps",), f"its expressions must have at most about {MAX_WEIGHT:,} characters together")]
    found = [*repeated(definition)]
    for number, step in enumerate(definition.steps):
        found += of_step(number, step, definition)
    if definition.steps and (definition.entry_point or "") not in definition.by_id:
        named = f"there is no step {definition.entry_point}" if definition.entry_point else "it is missing"
        found.append(Problem(("entry_point",), f"the step where the workflow begins: {named}"))
    return found or [*of_graph(definition)]


def weight(step: Step) -> int:
    if step.type not in BARE:
        return placeholders.weight(step.config)
    return sum(len(text) + placeholders.WEIGHT_OF_ONE for text in placeholders.texts(step.config))


def repeated(definition: Definition) -> Iterator[Problem]:
    known: set[str] = set()
    for number, step in enumerate(definition.steps):
        if step.id in known:
            yield Problem(("steps", number, "id"), f"step {step.id}: another step has this id")
        known.add(step.id)


def of_step(number: int, step: Step, definition: Definition) -> Iterator[Problem]:
    place = ("steps", number)
    if step.type not in CONFIGS:
        words = f"step {step.id}: there is no type {step.type}; there are {', '.join(sorted(CONFIGS))}"
        yield Problem((*place, "type"), words)
        return
    if len(dump_json(step.config)) > MAX_CONFIG_BYTES:
        yield Problem((*place, "config"), f"step {step.id}: config must be at most {MAX_CONFIG_BYTES} bytes of JSON")
        return
    children: tuple[str, ...] = ()
    try:
        children = step.told.children
    except ValidationError as error:
        for said in error.errors(include_input=False, include_url=False):
            field = ".".join(map(str, said["loc"]))
            yield Problem((*place, "config", *said["loc"]), f"step {step.id}: config.{field}: {said['msg']}")
    named = [("next_steps", step.next_steps), ("config", children)]
    named += [("error_handler", [step.error_handler])] if step.error_handler else []
    for field, step_ids in named:
        for missing in dict.fromkeys(each for each in step_ids if each not in definition.by_id):
            yield Problem((*place, field), f"step {step.id}: {field} names {missing}, and there is no such step")
    if len(set(step.next_steps)) < len(step.next_steps):
        yield Problem((*place, "next_steps"), f"step {step.id}: next_steps names a step twice")
    if step.type == "CONDITION" and not 1 <= len(step.next_steps) <= 2:
        words = "a CONDITION has one or two next_steps: where to go when it holds, and when it does not"
        yield Problem((*place, "next_steps"), f"step {step.id}: {words}")


def of_graph(definition: Definition) -> Iterator[Problem]:
    if not definition.steps:
        return
    found = read(definition)
    numbers = {step.id: number for number, step in enumerate(definition.steps)}
    for flaw in found.flaws:
        yield Problem(("steps", numbers[flaw.step_id], flaw.field), f"step {flaw.step_id}: {flaw.words}")
    if not found.flaws:
        for step in definition.steps:
            if depth(found, definition, step) > MAX_DEPTH:
                words = f"steps are nested more than {MAX_DEPTH} deep here"
                yield Problem(("steps", numbers[step.id], "config"), f"step {step.id}: {words}")


def read(definition: Definition) -> Graph:
    """The graph of a definition whose steps are right by themselves."""
    assert definition.entry_point
    nodes = [Node(step.id, step.followers, step.told.children, step.type == "LOOP") for step in definition.steps]
    return graph.read(nodes, definition.entry_point)


def depth(found: Graph, definition: Definition, step: Step) -> int:
    """How many LOOP and PARALLEL steps a step is inside of."""
    owners = {child: owner.id for owner in definition.steps for child in owner.told.children}
    count, place = 0, found.place[step.id]
    while place in owners:
        count, place = count + 1, found.place[owners[place]]
    return count

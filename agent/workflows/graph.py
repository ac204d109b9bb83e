"""In which order the steps of a workflow come. Pure.

Steps that follow each other are a region: the whole workflow, the body of a loop, a branch of a parallel step. A step
belongs to one region; inside it every step comes after all that lead to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter


@dataclass(frozen=True, slots=True)
class Node:
    """A step as the graph sees it: what may come next, and the entries of the regions that are its own."""

    id: str
    followers: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    loops: bool = False
    """Whether the steps inside may lead back to it."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with the graph: at which step, in which of its fields."""

    step_id: str
    field: str
    words: str


@dataclass(frozen=True, slots=True)
class Region:
    entry: str
    order: tuple[str, ...]


@dataclass(slots=True)
class Graph:
    """`regions` by their entries; the workflow's own is that of its entry point."""

    regions: dict[str, Region] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)
    place: dict[str, str] = field(default_factory=dict)
    """Each step, and the entry of the region that it belongs to."""


def read(nodes: Iterable[Node], entry: str) -> Graph:
    """The regions of a workflow whose steps all exist, and what is wrong with them."""
    known = {node.id: node for node in nodes}
    graph = Graph()
    waiting: list[tuple[str, Node | None]] = [(entry, None)]
    while waiting:
        start, owner = waiting.pop()
        if start in graph.place:
            graph.flaws.append(shared(start, owner, graph))
            continue
        waiting += add_region(graph, known, start, owner)
    for step_id in known:
        if step_id not in graph.place:
            graph.flaws.append(Flaw(step_id, "id", "no step leads here"))
    return graph


def shared(entry: str, owner: Node | None, graph: Graph) -> Flaw:
    assert owner, "the workflow's own region is the first"
    return Flaw(owner.id, "config", f"{entry} is inside of {owner.id} and elsewhere, too: a step has one place")


def add_region(
    graph: Graph, known: Mapping[str, Node], entry: str, owner: Node | None
) -> list[tuple[str, Node | None]]:
    """Take in a region; the regions inside of it, with the steps that they belong to."""
    back = owner.id if owner and owner.loops else None
    leads = {step_id: tuple(f for f in known[step_id].followers if f != back) for step_id in within(known, entry, back)}
    for step_id, followers in leads.items():
        for follower in followers:
            if graph.place.get(follower, entry) != entry:
                graph.flaws.append(Flaw(step_id, "next_steps", leaves(follower, owner)))
    mine = [step_id for step_id in leads if step_id not in graph.place]
    graph.place.update(dict.fromkeys(mine, entry))
    graph.regions[entry] = Region(entry, ordered(graph, mine, leads))
    return [(child, known[step_id]) for step_id in mine for child in known[step_id].children]


def leaves(follower: str, owner: Node | None) -> str:
    inside = f"what is inside of {owner.id}" if owner else "its place"
    return f"{follower} is outside of {inside}: what comes after it stands in its own next_steps"


def within(known: Mapping[str, Node], entry: str, back: str | None) -> list[str]:
    """The steps that can be reached from `entry` without going through `back`, in the order in which they are met."""
    found, waiting = {entry: None}, [entry]
    while waiting:
        for follower in known[waiting.pop()].followers:
            if follower not in found and follower != back:
                found[follower] = None
                waiting.append(follower)
    return list(found)


def ordered(graph: Graph, mine: list[str], leads: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Every step behind all that lead to it, the same in every process. A cycle is a flaw."""
    before: dict[str, list[str]] = {step_id: [] for step_id in mine}
    for step_id in mine:
        for follower in leads[step_id]:
            if follower in before:
                before[follower].append(step_id)
    try:
        return tuple(TopologicalSorter(before).static_order())
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        round_trip = " → ".join(cycle)
        graph.flaws.append(Flaw(cycle[0], "next_steps", f"a cycle outside of a LOOP: {round_trip}"))
        return tuple(mine)

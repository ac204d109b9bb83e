"""Random expressions and definitions: most of them nearly right, so that they get far."""

from functools import cache
from typing import Any

from hypothesis import strategies as st

NAMES = ("a", "b", "c", "d", "e", "f")
TOKENS = (
    *NAMES,
    "variables",
    "steps",
    "item",
    "@",
    "*",
    ".",
    "[",
    "]",
    "[]",
    "[*]",
    "[?",
    "{",
    "}",
    ":",
    ",",
    "|",
    "||",
    "&&",
    "!",
    "==",
    "<",
    "(",
    ")",
    "&",
    "`1`",
    "`null`",
    "'x'",
    "0",
    "-1",
    "length",
    "add",
    "sort_by",
    "map",
    "to_string",
    "join",
    "split",
)
GOOD = (
    "variables",
    "variables.a",
    "variables.a[*].b",
    "length(variables.a || '')",
    "add(variables.n || `0`, `1`)",
    "index",
    "item",
    "steps.a.output",
    "{a: variables.a, b: item}",
    "[variables.a, index]",
    "index > `2`",
    "variables.a[?@ > `1`]",
    "`true`",
    "`false`",
    "`[1, 2, 3]`",
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=10,
)
expression_texts = st.sampled_from(GOOD) | st.lists(st.sampled_from(TOKENS), max_size=12).map("".join)


@cache
def config_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """A config of a type, right more often than not; what is inside of it is named by whoever knows."""
    expression = st.integers(0, 39).flatmap(lambda luck: expression_texts if luck == 39 else st.sampled_from(GOOD))
    text = expression.map(lambda inner: f"say {{{{ {inner} }}}}")
    common = {
        "retries": st.integers(0, 2),
        "retry_delay_seconds": st.just(0),
        "repeatable": st.sampled_from([None, True, False]),
    }
    loop = {"over": expression} if kind == "LOOP over" else {"while": expression}
    known: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "INPUT": {"variables": st.just([{"name": "a", "required": False}])},
        "AGENT": {"prompt": text},
        "TOOL": {"tool": st.just("list_files"), "arguments": st.dictionaries(st.sampled_from(NAMES), text, max_size=1)},
        "MCP_TOOL": {"tool": st.just("act")},
        "CONDITION": {"expression": expression},
        "LOOP": {**loop, "collect": expression, "max_iterations": st.integers(1, 4)},
        "PARALLEL": {
            "failure": st.sampled_from(["first", "all"]),
            "max_concurrency": st.integers(1, 3),
        },
        "WAIT": {"seconds": st.integers(0, 5) | text},
        "WEBHOOK": {"url": st.just("https://x.example/{{ index }}"), "body": text},
        "TRANSFORM": {"expression": expression, "set": st.dictionaries(st.sampled_from(NAMES), expression, max_size=2)},
    }
    return st.fixed_dictionaries({**common, **known[kind.split()[0]]})


PLAIN = ("INPUT", "AGENT", "TOOL", "MCP_TOOL", "WAIT", "WEBHOOK", "TRANSFORM", "TRANSFORM")
INSIDE = ("LOOP over", "LOOP while", "PARALLEL")
Steps = list[dict[str, Any]]


@st.composite
def regions(draw: st.DrawFn, prefix: str, depth: int) -> Steps:
    """Steps that lead on to later ones; those of what is inside of them stand behind them."""
    names = [f"{prefix}{n}" for n in range(draw(st.integers(1, 3) if depth else st.integers(2, 6)))]
    steps: Steps = []
    for number, name in enumerate(names):
        later = names[number + 1 :]
        kinds = (*PLAIN, *(("CONDITION",) * 2 if later else ()), *(INSIDE if depth < 2 else ()))
        kind = draw(st.sampled_from(kinds))
        entries = [f"{name}.{n}." for n in range(draw(st.integers(1, 2)) if kind == "PARALLEL" else 1)]
        config = draw(config_of(kind))
        if kind == "PARALLEL":
            config["branches"] = [f"{entry}0" for entry in entries]
        elif kind in INSIDE:
            config["body"] = f"{entries[0]}0"
        ways = [later[0], *draw(st.lists(st.sampled_from(later), max_size=1))] if later else []
        handler = draw(st.sampled_from([None, *later]))
        known = {"id": name, "type": kind.split()[0], "config": config, "error_handler": handler}
        steps.append({**known, "next_steps": list(dict.fromkeys(ways))})
        for entry in entries if kind in INSIDE else ():
            steps += draw(regions(entry, depth + 1))
    return steps


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """Right ones, and such with a mistake in them."""
    steps: Steps = draw(regions("s", 0))
    wrong = draw(st.sampled_from(steps))
    ids = [step["id"] for step in steps]
    mistakes: list[dict[str, Any]] = [
        {},
        {},
        {"next_steps": draw(st.lists(st.sampled_from([*ids, "nowhere"]), max_size=2))},
        {"error_handler": draw(st.sampled_from(ids))},
        {"type": "DANCE"},
        {"config": draw(st.dictionaries(st.sampled_from(sorted(wrong["config"])), json_values, max_size=3))},
    ]
    wrong |= draw(st.sampled_from(mistakes))
    entry = draw(st.sampled_from(["s0"] * 9 + ["nowhere"]))
    return {"steps": steps, "entry_point": entry, "max_retries": 1}

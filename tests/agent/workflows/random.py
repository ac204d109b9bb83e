"""Random expressions and definitions: most of them nearly right, so that they get far."""

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

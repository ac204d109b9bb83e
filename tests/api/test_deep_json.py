"""Bodies that are nested without end, at every route that takes JSON: refused in words, whatever field they are in."""

from typing import Any

import pytest
from fastapi import FastAPI

from tests.api.conftest import Person
from tests.api.world import things_of

DEPTHS = (300, 900, 100_000)
"""More than our encoder takes, nearly what our parser takes, and more than that."""


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def bodies(model: dict[str, Any], depth: int) -> list[str]:
    """A body that is nothing but depth, one for each field that has it, and one for each in which it is further in."""
    names, deep = model.get("properties", {}), nested(depth)
    return [deep, *(f'{{"{name}": {value}}}' for name in names for value in (deep, f'{{"a": {deep}}}'))]


@pytest.mark.parametrize("depth", DEPTHS)
async def test_no_route_stumbles_over_depth(ann: Person, app: FastAPI, depth: int) -> None:
    things = await things_of(ann)
    document = app.openapi()
    asked = 0
    for path, routes in document["paths"].items():
        for method, route in routes.items():
            content = route.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            schema = content["schema"]
            named = schema.get("$ref") or next((s["$ref"] for s in schema.get("anyOf", ()) if "$ref" in s), "")
            model = document["components"]["schemas"].get(named.rpartition("/")[2], {})
            url = path.removeprefix("/api").format(**things.ids)
            for body in bodies(model, depth):
                answer = await ann.request(method, url, content=body, headers={"Content-Type": "application/json"})
                assert answer.status_code < 500, f"{method} {path} {body[:60]}: {answer.text[:200]}"
                asked += 1
    assert asked > 20

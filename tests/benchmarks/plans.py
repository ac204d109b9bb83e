"""The statements that go through a pool, and whether the server would read a whole table for one of them."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from asyncpg.connection import LoggedQuery

from services.postgres import Connection, Pool

PLANNED = re.compile(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b")
CONDITIONS = ("Index Cond", "Recheck Cond", "TID Cond")
EXPLAINED = """
CREATE FUNCTION pg_temp.explained(statement text) RETURNS json LANGUAGE plpgsql AS $$
DECLARE plan json;
BEGIN
    EXECUTE 'EXPLAIN (GENERIC_PLAN, FORMAT JSON) ' || statement INTO plan;
    RETURN plan;
END $$
"""


@dataclass(frozen=True, slots=True)
class Statement:
    query: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Scan:
    """A table that would be read from end to end, and by which node of which kind of plan."""

    table: str
    node: str
    kind: str
    query: str

    def __str__(self) -> str:
        return f"{self.node} on {self.table} ({self.kind} plan): {' '.join(self.query.split())}"


@asynccontextmanager
async def recorded(pool: Pool) -> AsyncIterator[list[Statement]]:
    """What goes through a pool meanwhile, BEGIN and COMMIT aside. Nothing else may use the pool when this begins."""
    said: list[Statement] = []

    def hear(record: LoggedQuery) -> None:
        if PLANNED.match(record.query):
            said.append(Statement(record.query, tuple(record.args or ())))

    async with all_connections(pool) as connections:
        for conn in connections:
            conn.add_query_logger(hear)
    try:
        yield said
        await asyncio.sleep(0)  # they are told of a statement in the turn after it
    finally:
        async with all_connections(pool) as connections:
            for conn in connections:
                conn.remove_query_logger(hear)


@asynccontextmanager
async def all_connections(pool: Pool) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.acquire()) for _ in range(pool.get_max_size())]


async def scans(conn: Connection, statements: Iterable[Statement], tables: Collection[str]) -> list[Scan]:
    """Where one of these tables would be read whole: in the plan for the arguments as given, or for any."""
    partial = await partial_indexes(conn)
    await conn.execute(EXPLAINED)
    found = []
    for one in {one.query: one for one in statements}.values():
        for kind, plan in await plans(conn, one):
            for node in nodes(plan):
                if node.get("Relation Name") in tables and reads_all(node, partial):
                    found.append(Scan(node["Relation Name"], node["Node Type"], kind, one.query))
    await conn.execute("DROP FUNCTION pg_temp.explained")
    return found


async def plans(conn: Connection, said: Statement) -> Sequence[tuple[str, Any]]:
    custom = await conn.fetchval(f"EXPLAIN (FORMAT JSON) {said.query}", *said.arguments)
    generic = await conn.fetchval("SELECT pg_temp.explained($1)", said.query)
    return [("custom", orjson.loads(custom)[0]["Plan"]), ("generic", orjson.loads(generic)[0]["Plan"])]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def reads_all(node: dict[str, Any], partial: Collection[str]) -> bool:
    """A sequential scan, or a walk through a whole index unless that holds only some rows."""
    if node["Node Type"] == "Seq Scan":
        return True
    if not node["Node Type"].startswith("Index"):
        return False
    return not any(name in node for name in CONDITIONS) and node["Index Name"] not in partial


async def partial_indexes(conn: Connection) -> set[str]:
    rows = await conn.fetch(
        "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indpred IS NOT NULL"
    )
    return {row["relname"] for row in rows}

"""Which agents of an account are shown, and in what order."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from services.agents import COLUMNS, Agent
from services.postgres import Executor

SortBy = Literal["name", "created_at", "updated_at", "tools_count"]
SortOrder = Literal["asc", "desc"]
ORDERS: dict[str, str] = {
    "name": "lower(a.name)",
    "created_at": "a.created_at",
    "updated_at": "a.updated_at",
    "tools_count": "cardinality(tools) + cardinality(mcps)",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """None does not filter. `search` looks into name and description; `tools`: any of these enabled tools or servers.

    A server is named by its name, or `mcp:` and its name.
    """

    search: str | None = None
    is_default: bool | None = None
    has_mcps: bool | None = None
    has_tools: bool | None = None
    tools: tuple[str, ...] = ()


FOUND = """
FROM agents a
LEFT JOIN agent_versions v ON v.version_id = a.current_version_id
CROSS JOIN LATERAL (SELECT
    ARRAY(
        SELECT key FROM jsonb_each(v.agentpress_tools) WHERE value = 'true' OR value -> 'enabled' = 'true'
    ) AS tools,
    ARRAY(SELECT mcp ->> 'name' FROM jsonb_array_elements(v.configured_mcps || v.custom_mcps) AS mcp) AS mcps
) AS has
WHERE a.account_id = $1
  AND ($2::text IS NULL OR a.name ILIKE $2 OR a.description ILIKE $2)
  AND ($3::bool IS NULL OR a.is_default = $3)
  AND ($4::bool IS NULL OR (cardinality(mcps) > 0) = $4)
  AND ($5::bool IS NULL OR (cardinality(tools) > 0) = $5)
  AND ($6::text[] IS NULL OR tools && $6 OR mcps && $6
       OR EXISTS (SELECT FROM unnest(mcps) AS mcp WHERE 'mcp:' || mcp = ANY($6)))
"""


async def page(
    conn: Executor,
    account_id: UUID,
    wanted: Wanted,
    *,
    sort_by: SortBy = "created_at",
    sort_order: SortOrder = "desc",
    limit: int,
    offset: int,
) -> list[Agent]:
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS} {FOUND}
        ORDER BY {ORDERS[sort_by]} {sort_order}, a.agent_id {sort_order} LIMIT $7 OFFSET $8
        """,
        *arguments(account_id, wanted),
        limit,
        offset,
    )
    return [Agent(**row) for row in rows]


async def count(conn: Executor, account_id: UUID, wanted: Wanted) -> int:
    total: int = await conn.fetchval(f"SELECT count(*) {FOUND}", *arguments(account_id, wanted))
    return total


def arguments(account_id: UUID, wanted: Wanted) -> list[object]:
    return [
        account_id,
        f"%{literal(wanted.search)}%" if wanted.search else None,
        wanted.is_default,
        wanted.has_mcps,
        wanted.has_tools,
        list(wanted.tools) or None,
    ]


def literal(text: str) -> str:
    """A text that LIKE takes for itself."""
    return text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")

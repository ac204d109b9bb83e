"""What people look at: every list of the API with every filter, for the account and the thread that are largest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import md5
from uuid import UUID

from api.paging import encode_moment
from services.postgres import Executor
from tests.benchmarks.filling import Sizes

STATUSES = ("running", "completed", "failed", "stopped")
PHASES = ("waiting", "queued", "running", "stopping", "completed", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class Look:
    name: str
    path: str
    asked: Mapping[str, str | int] = field(default_factory=dict)
    group: str = ""


def id_of(kind: str, number: int = 0) -> UUID:
    """As `id_of` of the filled database."""
    return UUID(md5(f"{kind}{number}".encode(), usedforsecurity=False).hexdigest())


def largest_account() -> UUID:
    return id_of("account")


async def looks(conn: Executor, sizes: Sizes) -> list[Look]:
    """The largest account's, on a filled database."""
    theirs = await conn.fetchval("SELECT count(*) FROM threads WHERE account_id = $1", largest_account())
    return [*at_threads(sizes, theirs), *at_runs(await cursor_at(conn, theirs // 2)), *at_others(theirs)]


async def cursor_at(conn: Executor, offset: int) -> str:
    query = "SELECT created_at, id FROM agent_runs WHERE account_id = $1 ORDER BY created_at DESC, id DESC OFFSET $2"
    row = await conn.fetchrow(f"{query} LIMIT 1", largest_account(), offset)
    assert row
    return encode_moment(row["created_at"], row["id"])


def at_threads(sizes: Sizes, theirs: int) -> Sequence[Look]:
    """The thread with the most messages and runs, and lists of all threads."""
    thread, half = f"/threads/{id_of('thread')}", sizes.messages // 2
    return [
        Look("1,000", "/threads", group="GET /threads"),
        Look("50", "/threads", {"limit": 50}, "GET /threads"),
        Look("50, last page", "/threads", {"limit": 50, "page": last_page(theirs)}, "GET /threads"),
        Look("the largest", thread, group="GET /threads/{id}"),
        Look("the largest, 50 messages", thread, {"messages": 50}, "GET /threads/{id}"),
        Look("1,000", f"{thread}/messages", group="GET …/messages"),
        Look("50, newest first", f"{thread}/messages", {"limit": 50}, "GET …/messages"),
        Look("50, oldest first", f"{thread}/messages", {"limit": 50, "order": "asc"}, "GET …/messages"),
        Look("50, deep cursor", f"{thread}/messages", {"limit": 50, "cursor": half}, "GET …/messages"),
        Look(
            "50, deep cursor, oldest first",
            f"{thread}/messages",
            {"limit": 50, "cursor": half, "order": "asc"},
            "GET …/messages",
        ),
    ]


def at_runs(cursor: str) -> Sequence[Look]:
    group = "GET /agent-runs"
    return [
        Look("1,000", f"/thread/{id_of('thread')}/agent-runs", group="GET /thread/{id}/agent-runs"),
        Look("50", "/agent-runs", group=group),
        Look("1,000", "/agent-runs", {"limit": 1000}, group),
        Look("deep cursor", "/agent-runs", {"cursor": cursor}, group),
        *(Look(f"status {status}", "/agent-runs", {"status": status}, group) for status in STATUSES),
        *(Look(f"phase {phase}", "/agent-runs", {"phase": phase}, group) for phase in PHASES),
        Look("status failed, phase stopped", "/agent-runs", {"status": "failed", "phase": "stopped"}, group),
        Look("of a thread", "/agent-runs", {"thread_id": str(id_of("thread"))}, group),
        Look("of a project, failed", "/agent-runs", {"project_id": str(id_of("project")), "status": "failed"}, group),
        Look("active", "/agent-runs/active", group=group),
    ]


def at_others(theirs: int) -> Sequence[Look]:
    return [
        Look("1,000", "/projects", group="GET /projects"),
        Look("50, last page", "/projects", {"limit": 50, "page": last_page(theirs)}, "GET /projects"),
        Look("20", "/agents", group="GET /agents"),
        Look("100, by name", "/agents", {"limit": 100, "sort_by": "name", "sort_order": "asc"}, "GET /agents"),
        Look("by number of tools", "/agents", {"sort_by": "tools_count"}, "GET /agents"),
        Look("search", "/agents", {"search": "garden 1", "tools": "shell"}, "GET /agents"),
        Look("1,000", "/billing/usage-logs", group="GET /billing/usage-logs"),
        Look("50, page 10", "/billing/usage-logs", {"items_per_page": 50, "page": 9}, "GET /billing/usage-logs"),
    ]


def last_page(count: int, limit: int = 50) -> int:
    return max(1, -(-count // limit))

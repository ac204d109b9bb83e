"""What every route acts on, and how: the one place that says who may do it.

Which things are whose is asked where they are read (`readable` and `writable` of services.threads and its like).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute

from api.auth import Caller
from services.errors import Forbidden
from services.members import Role

Action = Literal["read", "write", "admin", "end", "person"]
"""`end` and `person` are for those who signed in, never for an API key: of an owner, and of anybody for themselves."""

ROLES: dict[Action, tuple[Role, ...]] = {
    "read": ("owner", "member", "viewer"),
    "write": ("owner", "member"),
    "admin": ("owner",),
    "end": ("owner",),
    "person": ("owner", "member", "viewer"),
}
SCOPES: dict[Action, tuple[str, ...]] = {
    "read": ("runs:read", "admin"),
    "write": ("runs:write", "admin"),
    "admin": ("admin",),
    "end": (),
    "person": (),
}
"""The scopes of an API key of which any one lets it."""


@dataclass(frozen=True, slots=True)
class Access:
    on: str
    action: Action
    starts: bool = False
    """Whether it starts a run: without Redis the rate limit may be closed for these."""


SIGNED = {"POST /webhooks/trigger/{workflow_id}", "POST /schedules/trigger/{workflow_id}"}
"""What strangers ask who sign what they say: the route itself looks at the signature."""
OPEN = {"GET /health", "GET /health/ready", *SIGNED}
"""What anybody may ask."""

ROUTES = {
    "POST /agent/initiate": Access("account", "write", starts=True),
    "POST /thread/{thread_id}/agent/start": Access("thread", "write", starts=True),
    "POST /agent-run/{run_id}/retry": Access("run", "write", starts=True),
    "POST /agent-run/{run_id}/stop": Access("run", "write"),
    "POST /agent-runs/stop": Access("run", "write"),
    "GET /agent-run/{run_id}": Access("run", "read"),
    "GET /agent-run/{run_id}/stream": Access("run", "read"),
    "POST /agent-run/{run_id}/stream-token": Access("run", "read"),
    "GET /agent-run/{run_id}/webhook-attempts": Access("webhook", "read"),
    "GET /thread/{thread_id}/agent-runs": Access("thread", "read"),
    "GET /agent-runs": Access("account", "read"),
    "GET /agent-runs/active": Access("account", "read"),
    "GET /threads": Access("account", "read"),
    "POST /threads": Access("account", "write"),
    "GET /threads/{thread_id}": Access("thread", "read"),
    "PATCH /threads/{thread_id}": Access("thread", "write"),
    "DELETE /threads/{thread_id}": Access("thread", "write"),
    "GET /threads/{thread_id}/messages": Access("thread", "read"),
    "POST /threads/{thread_id}/messages": Access("thread", "write"),
    "POST /threads/{thread_id}/messages/add": Access("thread", "write"),
    "DELETE /threads/{thread_id}/messages/{message_id}": Access("thread", "write"),
    "GET /projects": Access("account", "read"),
    "GET /projects/{project_id}": Access("project", "read"),
    "PATCH /projects/{project_id}": Access("project", "write"),
    "DELETE /projects/{project_id}": Access("project", "write"),
    "GET /sandboxes/{project_id}/files": Access("project", "read"),
    "GET /sandboxes/{project_id}/files/content": Access("project", "read"),
    "POST /sandboxes/{project_id}/files": Access("project", "write"),
    "DELETE /sandboxes/{project_id}/files": Access("project", "write"),
    "GET /agents": Access("account", "read"),
    "POST /agents": Access("account", "write"),
    "GET /agents/{agent_id}": Access("agent", "read"),
    "PUT /agents/{agent_id}": Access("agent", "write"),
    "DELETE /agents/{agent_id}": Access("agent", "write"),
    "GET /agents/{agent_id}/versions": Access("agent", "read"),
    "POST /agents/{agent_id}/versions": Access("agent", "write"),
    "GET /agents/{agent_id}/versions/{version_id}": Access("agent", "read"),
    "PUT /agents/{agent_id}/versions/{version_id}/activate": Access("agent", "write"),
    "GET /thread/{thread_id}/agent": Access("thread", "read"),
    "GET /workflows": Access("account", "read"),
    "POST /workflows": Access("account", "write"),
    "GET /workflows/templates": Access("account", "read"),
    "GET /workflows/{workflow_id}": Access("workflow", "read"),
    "PUT /workflows/{workflow_id}": Access("workflow", "write"),
    "DELETE /workflows/{workflow_id}": Access("workflow", "write"),
    "POST /workflows/{workflow_id}/execute": Access("workflow", "write", starts=True),
    "GET /workflows/{workflow_id}/webhook": Access("workflow", "write"),
    "PUT /workflows/{workflow_id}/webhook": Access("workflow", "write"),
    "DELETE /workflows/{workflow_id}/webhook": Access("workflow", "write"),
    "POST /workflows/{workflow_id}/webhook/rotate": Access("workflow", "write"),
    "GET /workflows/{workflow_id}/executions": Access("workflow", "read"),
    "GET /workflows/executions/{execution_id}": Access("execution", "read"),
    "POST /workflows/executions/{execution_id}/cancel": Access("execution", "write"),
    "GET /workflows/executions/{execution_id}/stream": Access("execution", "read"),
    "GET /schedules": Access("account", "read"),
    "POST /schedules": Access("account", "write"),
    "GET /schedules/templates": Access("account", "read"),
    "POST /schedules/validate/cron": Access("account", "read"),
    "GET /schedules/{schedule_id}": Access("schedule", "read"),
    "PUT /schedules/{schedule_id}": Access("schedule", "write"),
    "DELETE /schedules/{schedule_id}": Access("schedule", "write"),
    "POST /schedules/{schedule_id}/pause": Access("schedule", "write"),
    "POST /schedules/{schedule_id}/resume": Access("schedule", "write"),
    "GET /schedules/{schedule_id}/logs": Access("schedule", "read"),
    "POST /mcp/discover-custom-tools": Access("project", "write"),
    "GET /billing/check-status": Access("account", "read"),
    "GET /billing/available-models": Access("account", "read"),
    "GET /billing/usage-logs": Access("account", "read"),
    "GET /api-keys": Access("account", "admin"),
    "POST /api-keys": Access("account", "admin"),
    "PATCH /api-keys/{key_id}/revoke": Access("api key", "admin"),
    "DELETE /api-keys/{key_id}": Access("api key", "admin"),
    "GET /accounts": Access("person", "person"),
    "POST /accounts": Access("person", "person"),
    "DELETE /accounts/{account_id}": Access("account", "end"),
    "GET /accounts/{account_id}/export": Access("account", "admin"),
    "GET /accounts/{account_id}/members": Access("account", "read"),
    "POST /accounts/{account_id}/members": Access("account", "admin"),
    "PATCH /accounts/{account_id}/members/{user_id}": Access("account", "admin"),
    "DELETE /accounts/{account_id}/members/{user_id}": Access("account", "admin"),
    "POST /accounts/{account_id}/leave": Access("account", "person"),
    "GET /accounts/{account_id}/webhook-secret": Access("account", "admin"),
    "POST /accounts/{account_id}/webhook-secret/rotate": Access("account", "admin"),
}


class Undeclared(Exception):
    """A route does not say what it acts on."""


def require_declared(routers: Iterable[APIRouter]) -> None:
    """Every route is open to anybody or in ROUTES. Raises: Undeclared, so that no application starts with a hole."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    names = {f"{method} {route.path}" for route in routes for method in route.methods or ()}
    if missing := sorted(names - OPEN - set(ROUTES)):
        raise Undeclared(f"api/access.py does not say what these routes act on: {', '.join(missing)}")


def access_of(request: Request) -> Access:
    return ROUTES[f"{request.method} {request.scope['route'].path}"]


def check(caller: Caller, access: Access) -> None:
    """Raises: Forbidden when the caller's role in the account, or its API key, does not let it do this."""
    if caller.key and not caller.key.scopes.intersection(SCOPES[access.action]):
        raise Forbidden(missing_scope(access.action))
    if caller.role not in ROLES[access.action]:
        raise Forbidden(f"Your role in this account is {caller.role}; this takes {' or '.join(ROLES[access.action])}.")


def missing_scope(action: Action) -> str:
    if not SCOPES[action]:
        return "This cannot be done with an API key: sign in."
    return f"This API key does not have the scope {SCOPES[action][0]}."

"""The OpenAPI document: what FastAPI cannot see of the routes, which is how they refuse and where ids lead.

Every route is documented alike, from what api/access.py says of it; only what is peculiar to one stands here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute

from api import access

Schema = dict[str, Any]
Operation = dict[str, Any]

PREFIX = "/api"
PROBLEM = "Problem"
TEXT: Schema = {"type": "string"}
BINARY: Schema = {"type": "string", "format": "binary"}
ATTACHED = {"Content-Disposition": {"required": True, "schema": {"type": "string", "pattern": "^attachment; "}}}
"""The headers of an answer that a browser saves instead of showing it."""


def record(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def said(*details: Schema) -> Schema:
    """The body of a refusal: `detail` is a sentence, or one of these."""
    return record(detail={"anyOf": [TEXT, *details]} if details else TEXT)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an answer of one status means, how its `detail` looks, and which headers it always has."""

    means: str
    body: Schema = field(default_factory=lambda: {"$ref": f"#/components/schemas/{PROBLEM}"})
    headers: Mapping[str, Schema] = field(default_factory=dict)

    @property
    def documented(self) -> dict[str, Any]:
        headers = {name: {"required": True, "schema": schema} for name, schema in self.headers.items()}
        answer = {"description": self.means, "content": {"application/json": {"schema": self.body}}}
        return {**answer, "headers": headers} if headers else answer


ID: Schema = {"type": "string", "format": "uuid"}
COUNT: Schema = {"type": "integer", "minimum": 0}

REFUSALS = {
    401: Refusal("Nobody knows who asks.", headers={"WWW-Authenticate": TEXT}),
    402: Refusal("The account may not run anything more.", record(detail=record(message=TEXT, subscription={}))),
    403: Refusal(
        "Whoever asks may not do this; or not with this model.",
        said(record(message=TEXT, allowed_models=listed(TEXT))),
    ),
    404: Refusal("There is no such thing, or it is somebody else's."),
    409: Refusal(
        "The state of the thing does not allow this; `agent_run_id` is the run that is in the way.",
        said(record(message=TEXT, agent_run_id=ID)),
    ),
    413: Refusal("The request is too large."),
    415: Refusal("The body is of a type that is not taken here."),
    429: Refusal(
        "Too many requests of this user; or too many runs of the account.",
        said(
            record(message=TEXT, limit=COUNT, retry_after=COUNT),
            record(message=TEXT, limit=COUNT, running_thread_ids=listed(ID), running_count=COUNT),
        ),
        {"Retry-After": COUNT},
    ),
    502: Refusal("The server that was named cannot be used."),
    503: Refusal("A service that this needs is away; try again shortly.", headers={"Retry-After": COUNT}),
    504: Refusal("The server that was named did not answer in time."),
}
ANY_ROUTE = {401, 403, 429, 503}

PECULIAR = {
    "POST /agent/initiate": {402, 409},
    "POST /thread/{thread_id}/agent/start": {402, 409},
    "POST /agent-run/{run_id}/retry": {402, 409},
    "POST /workflows/{workflow_id}/execute": {402, 409},
    "POST /workflows/executions/{execution_id}/cancel": {409},
    "GET /workflows/executions/{execution_id}/stream": {409},
    "POST /schedules/{schedule_id}/pause": {409},
    "POST /schedules/{schedule_id}/resume": {409},
    "POST /schedules/trigger/{workflow_id}": {401, 404, 413, 503},
    "DELETE /agents/{agent_id}": {409},
    "POST /mcp/discover-custom-tools": {502, 504},
    "POST /api-keys": {409},
    "POST /accounts": {409},
    "POST /accounts/{account_id}/members": {409},
    "PATCH /accounts/{account_id}/members/{user_id}": {409},
    "DELETE /accounts/{account_id}/members/{user_id}": {409},
    "POST /accounts/{account_id}/leave": {409},
    "POST /webhooks/trigger/{workflow_id}": {401, 402, 403, 404, 409, 413, 415, 429, 503},
}
NEVER = {
    "GET /agent-run/{run_id}/stream": {429, 503},
    "GET /workflows/executions/{execution_id}/stream": {429, 503},
}
"""An EventSource gives up for good on any status but 200: it is told to come again inside a stream."""

GIVES = {
    "initiate": {"thread_id": "thread_id", "run_id": "agent_run_id", "project_id": "project_id"},
    "start_run": {"run_id": "agent_run_id"},
    "retry_run": {"run_id": "agent_run_id"},
    "create_thread": {"thread_id": "thread_id", "project_id": "project_id"},
    "create_message": {"message_id": "message_id"},
    "add_user_message": {"message_id": "message_id"},
    "create_agent": {"agent_id": "agent_id", "version_id": "current_version_id"},
    "create_version": {"version_id": "version_id"},
    "create_workflow": {"workflow_id": "id"},
    "create_schedule": {"schedule_id": "id"},
    "execute": {"execution_id": "execution_id", "run_id": "agent_run_id", "thread_id": "thread_id"},
    "create_api_key": {"key_id": "key_id"},
    "create_account": {"account_id": "account_id"},
    "add_member": {"user_id": "user_id"},
}
"""Which parameters of paths an answer has, and in which of its fields."""


def operation_id(route: APIRoute) -> str:
    return route.name


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Say of every route how it refuses, and of every answer that makes something what can be asked of that."""
    document["components"]["schemas"][PROBLEM] = said()
    document["components"]["responses"] = {
        HTTPStatus(status).name: refusal.documented for status, refusal in REFUSALS.items()
    }
    operations = dict(operations_of(document))
    for name, operation in operations.items():
        for status in sorted(refusals_of(name, operation)):
            reference = {"$ref": f"#/components/responses/{HTTPStatus(status).name}"}
            operation["responses"].setdefault(str(status), reference)
    for operation in operations.values():
        if gives := GIVES.get(operation["operationId"]):
            operation["responses"]["200"]["links"] = dict(links(operation, gives, operations.values()))
    return document


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, Operation]]:
    """By the names that api/access.py has for them."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path.removeprefix(PREFIX)}", operation


def refusals_of(name: str, operation: Operation) -> set[int]:
    if name in access.OPEN:
        return PECULIAR.get(name, set())
    found = ANY_ROUTE | PECULIAR.get(name, set())
    if path_parameters(operation) or access.ROUTES[name].action != "read":
        found.add(404)  # of a route without an id: what it adds to may be deleted meanwhile
    if "requestBody" in operation:
        found.add(413)
    return found - NEVER.get(name, set())


def links(operation: Operation, gives: Mapping[str, str], others: Any) -> Iterator[tuple[str, Schema]]:
    known = {name: f"$request.path.{name}" for name in path_parameters(operation)}
    known |= {name: f"$response.body#/{place}" for name, place in gives.items()}
    for other in others:
        wanted = path_parameters(other)
        if wanted & gives.keys() and wanted <= known.keys():
            parameters = {f"path.{name}": known[name] for name in sorted(wanted)}
            yield other["operationId"], {"operationId": other["operationId"], "parameters": parameters}


def path_parameters(operation: Operation) -> set[str]:
    return {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}

"""What steps do that act: each takes what it was told and gives an output, or fails with a sentence."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid5

from agent.context import RunContext
from agent.workflows import agent_turns, placeholders, requests, tool_calls
from agent.workflows.bounds import ExpressionFailed
from agent.workflows.configs import AgentConfig, McpToolConfig, ToolConfig, WebhookConfig
from agent.workflows.definition import Step
from agent.workflows.expressions import BadExpression, Scope
from agent.workflows.failures import StepFailed


@dataclass(frozen=True, slots=True)
class Act:
    """One visit of a step at work. `inputs`: what its config says once expressions are replaced by their values."""

    ctx: RunContext
    step: Step
    execution_id: UUID
    visit: str
    inputs: dict[str, Any]
    scope: Scope
    usage: dict[str, Any] = field(default_factory=dict)
    """What it has spent, whatever comes of it."""

    @property
    def key(self) -> str:
        """The same for every try of this visit, in every attempt."""
        return f"{self.execution_id}:{self.step.id}:{self.visit}"

    @property
    def id(self) -> UUID:
        return uuid5(self.execution_id, self.key)


def rendered(value: Any, scope: Scope) -> Any:
    """Raises: StepFailed, which no other try can cure."""
    try:
        return placeholders.render(value, scope)
    except (BadExpression, ExpressionFailed) as error:
        raise StepFailed(f"{error}", again=False) from error


def inputs_of(step: Step, scope: Scope) -> dict[str, Any]:
    """What a visit is to be done with. Headers may be secret: they are made when they are needed, and not kept."""
    told = step.told
    if isinstance(told, AgentConfig):
        return {"prompt": as_text(rendered(told.prompt, scope))}
    if isinstance(told, ToolConfig | McpToolConfig):
        return {"tool": told.tool, "arguments": rendered(told.arguments, scope)}
    assert isinstance(told, WebhookConfig)
    asked = rendered({"url": told.url, "body": told.body}, scope)
    body = {} if asked["body"] is None else {"body": asked["body"]}
    return {"method": told.method, "url": as_text(asked["url"]), **body}


def as_text(value: Any) -> str:
    return placeholders.as_text(value)


async def speak(act: Act) -> Any:
    told = cast(AgentConfig, act.step.told)
    return await agent_turns.take(act.ctx, act.id, told, act.inputs["prompt"], act.step.id, act.visit, act.usage)


async def call_tool(act: Act) -> Any:
    return await tool_calls.make(act.ctx, act.id, act.key, act.inputs["tool"], act.inputs["arguments"])


async def call_mcp_tool(act: Act) -> Any:
    name = tool_calls.mcp_name(cast(McpToolConfig, act.step.told))
    return await tool_calls.make(act.ctx, act.id, act.key, name, act.inputs["arguments"])


async def send(act: Act) -> Any:
    told = cast(WebhookConfig, act.step.told)
    headers = {name: as_text(value) for name, value in rendered(told.headers, act.scope).items()}
    return await requests.send(act.ctx.settings, act.inputs, headers, act.key, told.timeout_seconds)


ACTS: dict[str, Callable[[Act], Awaitable[Any]]] = {
    "AGENT": speak,
    "TOOL": call_tool,
    "MCP_TOOL": call_mcp_tool,
    "WEBHOOK": send,
}


def is_repeatable(ctx: RunContext, step: Step) -> bool:
    """Whether a visit may be made again when nobody knows whether it happened.

    An agent's turn goes on from what it stored; a request is taken by its method; a tool knows by itself.
    """
    told = step.told
    if isinstance(told, AgentConfig):
        return True
    if told.repeatable is not None:
        return told.repeatable
    if isinstance(told, WebhookConfig):
        return told.method in ("GET", "HEAD")
    name = tool_calls.mcp_name(told) if isinstance(told, McpToolConfig) else cast(ToolConfig, told).tool
    return tool_calls.is_repeatable(ctx, name)

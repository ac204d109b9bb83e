"""What TOOL and MCP_TOOL steps call: a tool of the run, as if a model had called it."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from agent import tool_runner
from agent.calls import ToolCall
from agent.context import Calling, Draft, RunContext
from agent.mcp import names
from agent.tools import offer
from agent.tools.base import BadArguments
from agent.workflows.configs import McpToolConfig
from agent.workflows.failures import StepFailed
from services.messages import Message


async def make(ctx: RunContext, call_id: UUID, key: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`{text, data}` of a call that succeeded; `data` is the JSON that the text is, or null.

    Raises: StepFailed.
    """
    known = offer.of_run(ctx).get(name)
    if known is None:
        raise StepFailed(f"There is no tool {name} here.", again=False, harmless=True)
    try:
        known.read(arguments)
    except BadArguments as error:
        raise StepFailed(str(error), again=False, harmless=True) from error
    call = ToolCall(key, 0, name, arguments)
    # A context of its own: what a tool stores is no part of an answer that streams beside it.
    beside = replace(ctx, draft=Draft(), marks={"workflow_step": key})
    result = tool_runner.bounded(await tool_runner.run(Calling(beside, call, made_by(ctx, call_id))))
    if not result.success:
        raise StepFailed(f"{name}: {result.output}")
    return {"text": result.output, "data": data_of(result.output)}


def made_by(ctx: RunContext, call_id: UUID) -> Message:
    """What stands for the answer that a call is part of: nothing of it is stored, its id is what counts."""
    now = datetime.now(UTC)
    return Message(
        message_id=call_id,
        position=0,
        thread_id=ctx.run.thread_id,
        agent_run_id=ctx.run.id,
        type="assistant",
        is_llm_message=False,
        content={},
        metadata={},
        agent_id=ctx.run.agent_id,
        agent_version_id=ctx.run.agent_version_id,
        created_at=now,
        updated_at=now,
    )


def data_of(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def mcp_name(told: McpToolConfig) -> str:
    """What the run calls the tool."""
    if told.server is None:
        return told.tool
    (server,) = names.of_servers([told.server])
    return names.of_tools(server, [told.tool])[told.tool]


def is_repeatable(ctx: RunContext, name: str) -> bool:
    known = offer.of_run(ctx).get(name)
    return bool(known and known.repeatable)

"""Stored messages ↔ what a model is shown."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import orjson

from agent.calls import ToolCall, calls_of, dicts
from agent.context import RunContext
from services import messages, run_messages
from services.log import logger
from services.messages import Message, NewMessage
from services.postgres import Connection, Unreachable

T = TypeVar("T")

NO_RESULT = "There is no result: the call was stopped before it ended."
ODD_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")
LONGEST_NAME = 64
ROLES = ("user", "assistant", "system")
PARTS = {"text": str, "image_url": dict}
RETRY_SECONDS = 0.5
LEFT_OUT = "[… {left} characters left out here; expand_message with message_id {message_id} shows them …]"

Results = dict[tuple[str, str], Message]
Limits = Mapping[UUID, int]
"""How many characters of a message's text are shown, for those that are shortened; 0: none."""
NO_LIMITS: Limits = {}


def to_model(history: Iterable[Message], prompt: str, limits: Limits = NO_LIMITS) -> list[dict[str, Any]]:
    """The thread in the shape of OpenAI's chat completions; what no model could read is left out.

    Each tool call is followed by its result, as providers demand, wherever that is stored; a call that has none is
    given one that says so, and a result without its call is left out.
    """
    stored = [each for each in history if limits.get(each.message_id) != 0]
    results = results_by_call(stored)
    shown = (said for each in stored for said in model_messages(each, results, limits))
    return [{"role": "system", "content": prompt}, *shown]


def results_by_call(history: Iterable[Message]) -> Results:
    """Results by the message that made the call and the id of the call, which is unique only there."""
    owners: dict[str, str] = {}
    found: Results = {}
    for stored in history:
        if stored.type == "tool":
            call_id = str(stored.metadata.get("tool_call_id") or as_dict(stored.content).get("tool_call_id"))
            owner = stored.metadata.get("assistant_message_id") or owners.get(call_id)
            found.setdefault((str(owner), call_id), stored)
        else:
            owners.update({call.call_id: str(stored.message_id) for call in calls_of(stored)})
    return found


def model_messages(stored: Message, results: Results, limits: Limits) -> list[dict[str, Any]]:
    """A message and the results of the calls in it."""
    said = model_message(stored, limits)
    spoken = [said] if said else []
    made = calls_of(stored) if stored.type == "assistant" else []
    native = [call for call in made if call.tag is None and call.call_id]
    unanswered = [call for call in made if call.tag and (str(stored.message_id), call.call_id) not in results]
    if native:
        thinking = {} if stored.message_id in limits else thinking_of(as_dict(stored.content))
        made_by = {"role": "assistant", "content": "", **thinking, **(said or {})}
        spoken = [{**made_by, "tool_calls": [model_call(call, stored, limits) for call in native]}]
    answers = [model_result(call, results.get((str(stored.message_id), call.call_id)), limits) for call in native]
    told = [{"role": "user", "content": f"{call.tag}: {NO_RESULT}"} for call in unanswered]
    return [*spoken, *answers, *told]


def model_call(call: ToolCall, stored: Message, limits: Limits) -> dict[str, Any]:
    """Providers take only names of theirs and JSON objects as arguments; the result says what was wrong."""
    name = ODD_IN_NAME.sub("_", call.name)[:LONGEST_NAME]
    given = call.shown if isinstance(call.shown, dict) else {}
    shown = {
        parameter: shortened(value, stored, limits) if isinstance(value, str) else value
        for parameter, value in given.items()
    }
    arguments = orjson.dumps(shown).decode()
    return {"id": call.call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def model_result(call: ToolCall, stored: Message | None, limits: Limits) -> dict[str, Any]:
    told = shortened(plain_text(stored), stored, limits) if stored else NO_RESULT
    return {"role": "tool", "tool_call_id": call.call_id, "content": told}


def shortened(text: str, stored: Message, limits: Limits) -> str:
    """Beginning and end of a text that is too long, and how to read all of it."""
    limit = limits.get(stored.message_id)
    if limit is None or len(text) <= limit + len(LEFT_OUT):
        return text
    note = LEFT_OUT.format(left=len(text) - limit, message_id=stored.message_id)
    return f"{text[: limit - limit // 3]}\n{note}\n{text[len(text) - limit // 3 :]}"


def model_message(stored: Message, limits: Limits = NO_LIMITS) -> dict[str, Any] | None:
    """One stored message as a model message, or None.

    Content is a dict with role and content (ours), the same as a JSON string (older clients), or plain text.
    """
    said = as_dict(stored.content)
    role = said.get("role") or stored.type
    content = model_content(said.get("content"), role)
    limited = stored.message_id in limits
    if limited and content:
        content = shortened(content if isinstance(content, str) else text_of(content), stored, limits)
    thinking = thinking_of(said) if role == "assistant" and not limited else {}
    return {"role": role, "content": content, **thinking} if role in ROLES and content else None


def thinking_of(said: dict[str, Any]) -> dict[str, Any]:
    """What was thought and signed: it goes back to the model unchanged, before the calls that it led to."""
    blocks = dicts(said.get("thinking_blocks"))
    return {"thinking_blocks": blocks} if blocks else {}


def as_dict(content: Any) -> dict[str, Any]:
    if isinstance(content, dict):
        return content
    if isinstance(content, str):
        return parse(content) or {"content": content}
    return {}


def parse(text: str) -> dict[str, Any] | None:
    """The message that a JSON string holds; a person's own JSON is not one and stays text."""
    if not text.startswith("{"):
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and {"role", "content"} <= value.keys() else None


def model_content(content: Any, role: Any) -> str | list[dict[str, Any]] | None:
    if isinstance(content, str):
        return content if content.strip() else None
    if not isinstance(content, list):
        return None
    parts = [part for part in content if isinstance(part, dict) and readable_part(part)]
    return parts if role == "user" else text_of(parts) or None


def text_of(parts: Iterable[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def readable_part(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and kind in PARTS and bool(part.get(kind)) and isinstance(part[kind], PARTS[kind])


async def find(ctx: RunContext, message_id: UUID) -> Message | None:
    """One message of the run's thread; waits while Postgres is away."""
    return await patiently(ctx, lambda conn: messages.get(conn, ctx.run.thread_id, message_id))


def plain_text(stored: Message) -> str:
    """What a message says, for a reader of text; what has no text as JSON."""
    content = as_dict(stored.content).get("content")
    if isinstance(content, list):
        content = model_content(content, "assistant")
    return content if isinstance(content, str) else orjson.dumps(stored.content).decode()


async def store(ctx: RunContext, message: NewMessage) -> Message:
    """Store one message of the run, under the draft's id unless it has its own; a row stored before is left as it is.

    Waits while Postgres is away. Raises: FenceLost.
    """
    metadata = {**message.metadata, **ctx.marks}
    named = replace(message, message_id=message.message_id or ctx.draft.message_id, metadata=metadata)
    return await patiently(ctx, lambda conn: store_once(conn, ctx, named))


async def store_once(conn: Connection, ctx: RunContext, message: NewMessage) -> Message:
    assert message.message_id
    try:
        return (await run_messages.add(conn, ctx.fence, ctx.run.thread_id, [message]))[0]
    except asyncpg.UniqueViolationError:
        # An earlier try was committed although its answer never came back.
        stored = await messages.get(conn, ctx.run.thread_id, message.message_id)
        if stored is None:
            raise
        return stored


async def patiently(ctx: RunContext, act: Callable[[Connection], Awaitable[T]]) -> T:
    """What `act` returns; it is repeated while Postgres is away. Raises: what it raises; the error of a closed pool."""

    async def connected() -> T:
        async with ctx.pool.acquire() as conn:
            return await act(conn)

    return await repeatedly(ctx, connected)


async def repeatedly(ctx: RunContext, act: Callable[[], Awaitable[T]]) -> T:
    """As `patiently`, for what takes a connection itself when it needs one."""
    while True:
        try:
            return await act()
        except Unreachable as error:
            if ctx.pool.is_closing():
                raise
            logger.warning("thread.postgres_unreachable", agent_run_id=str(ctx.run.id), error=repr(error))
        await asyncio.sleep(RETRY_SECONDS)

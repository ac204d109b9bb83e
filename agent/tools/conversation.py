"""Tools that speak to the person, and the one that reads a long message whole."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator, Field

from agent import thread_manager
from agent.context import Calling
from agent.tools.base import ToolFailed, tool

PAGE_CHARS = 40_000


def split_names(value: Any) -> Any:
    """One path, or several with commas between them, as a list."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Attachments = Annotated[
    list[str],
    BeforeValidator(split_names),
    Field(description="Paths of files in the workspace, or URLs, to show with the message."),
]


@tool(body="text", terminates=True, repeatable=True)
async def ask(
    calling: Calling,
    text: Annotated[str, Field(min_length=1, description="The question, with what is needed to answer it.")],
    attachments: Attachments = [],  # noqa: B006 - a default of the schema; never changed
) -> str:
    """Ask the person a question and wait for the answer. Use it when you cannot go on without them."""
    return "The question was put to the person; the answer comes as the next message."


@tool(body="text", terminates=True, repeatable=True)
async def complete(
    calling: Calling,
    text: Annotated[str, Field(description="What was done, in short.")] = "",
    attachments: Attachments = [],  # noqa: B006 - a default of the schema; never changed
) -> str:
    """Say that the whole task is done. Use it only when nothing is left to do."""
    return "The task was reported as complete."


@tool(body="text", terminates=True, repeatable=True)
async def web_browser_takeover(
    calling: Calling,
    text: Annotated[str, Field(min_length=1, description="What the person is to do in the browser, and why.")],
    attachments: Attachments = [],  # noqa: B006 - a default of the schema; never changed
) -> str:
    """Ask the person to take over the browser: a login, a captcha, a payment. Use it when you cannot do it yourself."""
    return "The person was asked to take over the browser; they answer with the next message."


@tool(body="message_id", repeatable=True)
async def expand_message(
    calling: Calling,
    message_id: Annotated[UUID, Field(description="The id of the message that was shortened.")],
    offset: Annotated[int, Field(ge=0, description="From which character on.")] = 0,
) -> str:
    """Read a message of this conversation that was shown to you shortened."""
    stored = await thread_manager.find(calling.ctx, message_id)
    if stored is None:
        raise ToolFailed(f"There is no message {message_id} in this conversation.")
    text = thread_manager.plain_text(stored)
    page = text[offset : offset + PAGE_CHARS]
    left = len(text) - offset - len(page)
    return f"{page}\n[{left} more characters; go on with offset {offset + PAGE_CHARS}]" if left > 0 else page

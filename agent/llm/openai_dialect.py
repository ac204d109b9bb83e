"""Providers that speak OpenAI's chat completions, as a stream of chunks."""

from collections.abc import AsyncGenerator, Iterable
from typing import Any, cast

import openai.resources.chat  # at boot: 0.4 s that would otherwise stall the loop of running runs (TRAPS 28)
from httpx2 import AsyncClient
from openai import AsyncOpenAI, omit
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolUnionParam
from openai.types.shared_params import ReasoningEffort

from agent.catalog import Provider
from agent.llm.chunk import Chunk, ToolCallPart, Usage, readable
from agent.llm.failures import CallFailed, EndedEarly, Refused, Reported, Unreadable, from_transport, from_value_error
from agent.llm.request import ModelRequest
from agent.models import look_up
from services.http import timeouts
from services.settings import Settings

NO_KEY = "none"
STATUS_OF_WORD = {"server_error": "500", "rate_limit_exceeded": "429"}
"""What an error inside a stream calls itself: OpenRouter sends numbers, OpenAI words."""
ChatStream = openai.AsyncStream[ChatCompletionChunk]


async def stream(
    settings: Settings, http: AsyncClient, provider: Provider, request: ModelRequest
) -> AsyncGenerator[Chunk, None]:
    """Ask once and yield the answer as it comes; closing this iterator closes the provider's connection.

    Raises: CallFailed.
    """
    finished = False
    try:
        async with await open_stream(settings, http, provider, request) as answer:
            async for raw in answer:
                chunk = read(raw)
                finished = finished or chunk.finish_reason is not None
                yield chunk
    except (openai.OpenAIError, ValueError) as error:
        # After the finish reason only the usage can be missing: the answer itself is whole.
        if not (finished and isinstance(error, openai.APIConnectionError)):
            raise failure(error) from (error.__cause__ or error)
    if not finished:
        raise EndedEarly


async def open_stream(settings: Settings, http: AsyncClient, provider: Provider, request: ModelRequest) -> ChatStream:
    model = request.model.removeprefix(f"{provider.prefix}/")
    client = make_client(settings, http, provider)
    effort = request.reasoning_effort if look_up(request.model).thinking != "none" else None
    most = request.max_output or omit
    newest = provider.prefix == "openai"  # which refuses the older name for its reasoning models
    return await client.chat.completions.create(
        model=model,
        messages=cast("Iterable[ChatCompletionMessageParam]", [speakable(message) for message in request.messages]),
        stream=True,
        stream_options={"include_usage": True},
        reasoning_effort=cast("ReasoningEffort", effort) if effort else omit,
        tools=cast("Iterable[ChatCompletionToolUnionParam]", request.tools) if request.tools else omit,
        max_completion_tokens=most if newest else omit,
        max_tokens=omit if newest else most,
    )


def speakable(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what only Anthropic's API takes."""
    return {name: value for name, value in message.items() if name != "thinking_blocks"}


def make_client(settings: Settings, http: AsyncClient, provider: Provider) -> AsyncOpenAI:
    # The SDK's own retries are off: they repeat a call that was silent for the idle timeout, or is out of quota.
    return AsyncOpenAI(
        api_key=provider.key(settings) or NO_KEY,
        base_url=provider.base_url(settings),
        http_client=http,
        timeout=timeouts(settings),
        max_retries=0,
    )


def failure(error: openai.OpenAIError | ValueError) -> CallFailed:
    """The SDK's error in the words of `failures`."""
    if isinstance(error, openai.APIStatusError):
        retry_after = error.response.headers.get("retry-after", "")
        return Refused(error.status_code, told(error), str(error.code or ""), str(error.type or ""), retry_after)
    if isinstance(error, openai.APIConnectionError):
        return from_transport(error.__cause__)
    if isinstance(error, openai.APIError):
        code = str(error.code or error.type or "")
        return Reported(told(error), STATUS_OF_WORD.get(code, code))
    return from_value_error(error) if isinstance(error, ValueError) else Unreadable()


def told(error: openai.APIError) -> str:
    words = error.body.get("message") if isinstance(error.body, dict) else None
    return words if isinstance(words, str) else error.message


def read(raw: ChatCompletionChunk) -> Chunk:
    """One chunk of the wire; providers leave out what they like, so nothing is taken for granted."""
    choices = getattr(raw, "choices", None) or []
    usage = read_usage(getattr(raw, "usage", None))
    if not choices:
        return Chunk(usage=usage)
    delta = getattr(choices[0], "delta", None)
    return Chunk(
        text=readable(getattr(delta, "content", None)),
        reasoning=readable(getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)),
        tool_calls=tuple(read_tool_call(part) for part in getattr(delta, "tool_calls", None) or []),
        finish_reason=getattr(choices[0], "finish_reason", None),
        usage=usage,
    )


def read_tool_call(part: Any) -> ToolCallPart:
    function = getattr(part, "function", None)
    return ToolCallPart(
        index=getattr(part, "index", None) or 0,
        call_id=getattr(part, "id", None) or "",
        name=getattr(function, "name", None) or "",
        arguments=readable(getattr(function, "arguments", None)),
    )


def read_usage(usage: Any) -> Usage | None:
    if usage is None:
        return None
    prompt = int(getattr(usage, "prompt_tokens", None) or 0)
    completion = int(getattr(usage, "completion_tokens", None) or 0)
    total = int(getattr(usage, "total_tokens", None) or 0) or prompt + completion
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None) or 0
    reasoning = getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None) or 0
    return Usage(prompt, completion, total, cached_tokens=int(cached), reasoning_tokens=int(reasoning))

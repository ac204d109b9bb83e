"""Messages and tools in the OpenAI shape → a request body of Anthropic's Messages API. Pure."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from agent.llm.request import ModelRequest, plain_text
from agent.models import Model, look_up

CACHED = {"type": "ephemeral"}
CACHED_TURNS = 2
DATA_URL = re.compile(r"data:(image/[a-z]+);base64,(.+)", re.DOTALL)
FORBIDDEN_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
REFUSED_IN_SCHEMA = ("oneOf", "anyOf", "allOf")
THINKING_TYPES = ("thinking", "redacted_thinking")
BUDGETS = {"minimal": 1_024, "low": 4_096, "medium": 12_288, "high": 24_576}
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}
OPENING = "(The beginning of this conversation is not shown.)"
GO_ON = "Go on."

Block = dict[str, Any]


def body(request: ModelRequest, model_id: str) -> dict[str, Any]:
    """The request, streamed; `model_id` is the name without our prefix."""
    model = look_up(request.model)
    leading, rest = split_system(request.messages)
    turns = alternate(rest)
    thinking = thinking_config(model, request.reasoning_effort, turns)
    if not thinks(thinking):
        turns = alternate({**message, "thinking_blocks": None} for message in rest)
    asked: dict[str, Any] = {"model": model_id, "max_tokens": model.max_output, "stream": True, **thinking}
    if leading:
        asked["system"] = leading
    if request.tools:
        asked["tools"] = [tool(schema["function"]) for schema in request.tools]
    mark_cached(leading, turns)
    return {**asked, "messages": turns}


def split_system(messages: list[dict[str, Any]]) -> tuple[list[Block], list[dict[str, Any]]]:
    """The system prompt, and the conversation; what the system says later on becomes a part of it."""
    said = [message["role"] == "system" for message in messages]
    begin = said.index(False) if False in said else len(messages)
    return [block for message in messages[:begin] for block in content_blocks(message.get("content"))], messages[begin:]


def alternate(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """User and assistant in turns, a user first and last, as the API wants them."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        add_turn(turns, *blocks_of(message))
    if turns and turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": [text_block(OPENING)]})
    if not turns or turns[-1]["role"] == "assistant":
        turns.append({"role": "user", "content": [text_block(GO_ON)]})
    for turn in turns:
        # The results of calls must stand before anything else that is said in the turn after the calls.
        turn["content"].sort(key=lambda block: turn["role"] == "user" and block["type"] != "tool_result")
    return turns


def add_turn(turns: list[dict[str, Any]], role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"].extend(blocks)
    else:
        turns.append({"role": role, "content": blocks})


def blocks_of(message: dict[str, Any]) -> tuple[str, list[Block]]:
    match message["role"]:
        case "assistant":
            return "assistant", without_loose_end(list(assistant_blocks(message)))
        case "tool":
            return "user", [tool_result(message)]
    return "user", content_blocks(message.get("content"))


def assistant_blocks(message: dict[str, Any]) -> Iterator[Block]:
    """What the model said, its thinking unchanged and in the places where it came."""
    text = plain_text(message.get("content"))
    calls = [tool_use(call) for call in message.get("tool_calls") or []]
    said = begun = 0
    for kept in message.get("thinking_blocks") or []:
        if not isinstance(kept, dict) or kept.get("type") not in THINKING_TYPES:
            continue
        chars, earlier = position(kept.get("position"))
        yield from speech(text[said:chars])
        yield from calls[begun:earlier]
        yield {name: value for name, value in kept.items() if name != "position"}
        said, begun = max(said, chars), max(begun, earlier)
    yield from speech(text[said:])
    yield from calls[begun:]


def position(kept: Any) -> tuple[int, int]:
    match kept:
        case [int(chars), int(calls)]:
            return chars, calls
    return 0, 0


def without_loose_end(blocks: list[Block]) -> list[Block]:
    """The API refuses a message that ends with thinking: what was thought last came to nothing."""
    while blocks and blocks[-1]["type"] in THINKING_TYPES:
        blocks.pop()
    return blocks


def speech(text: str) -> Iterator[Block]:
    """One block, or none: the API refuses blocks of white space."""
    if text.strip():
        yield text_block(text)


def text_block(text: str) -> Block:
    return {"type": "text", "text": text}


def content_blocks(content: Any) -> list[Block]:
    """A message's content, which is a string or a list of parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    return [block for part in parts for block in part_blocks(part)]


def part_blocks(part: dict[str, Any]) -> Iterator[Block]:
    if part.get("type") == "text":
        yield from speech(part.get("text") or "")
    elif part.get("type") == "image_url":
        yield from image(part["image_url"].get("url"))


def image(url: Any) -> Iterator[Block]:
    if not isinstance(url, str) or not url:
        return
    data = DATA_URL.fullmatch(url)
    source = {"type": "base64", "media_type": data[1], "data": data[2]} if data else {"type": "url", "url": url}
    yield {"type": "image", "source": source}


def tool_use(call: dict[str, Any]) -> Block:
    function = call["function"]
    arguments = read_arguments(function.get("arguments") or "{}")
    return {"type": "tool_use", "id": call_id(call["id"]), "name": function["name"], "input": arguments}


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments as an object; what the model wrote instead of one is shown to it under a name that says so."""
    try:
        arguments = orjson.loads(text)
    except orjson.JSONDecodeError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {"not_an_object": text}


def tool_result(message: dict[str, Any]) -> Block:
    blocks = content_blocks(message.get("content"))
    result = {"type": "tool_result", "tool_use_id": call_id(message["tool_call_id"])}
    return {**result, "content": blocks} if blocks else result


def call_id(other: str) -> str:
    """An id that the API takes: threads may hold calls of models with other habits."""
    return FORBIDDEN_IN_ID.sub("_", other)


def tool(function: dict[str, Any]) -> dict[str, Any]:
    """A function's schema; what the API refuses at its top is left out, since one such tool would fail every call."""
    given = {name: part for name, part in (function.get("parameters") or {}).items() if name not in REFUSED_IN_SCHEMA}
    described = {"description": function["description"]} if function.get("description") else {}
    return {"name": function["name"], **described, "input_schema": {"properties": {}, **given, "type": "object"}}


def thinking_config(model: Model, effort: str | None, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """`thinking` and `output_config` for the effort that was asked for; None asks for no thinking."""
    if model.thinking == "none":
        return {}
    if model.thinking == "adaptive":
        return adaptive(model, effort)
    if effort is None or not takes_budget(turns):
        return {}
    budget = min(BUDGETS.get(effort, BUDGETS["medium"]), model.max_output // 2)
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def adaptive(model: Model, effort: str | None) -> dict[str, Any]:
    if effort is None and model.thinking_off == "omit":
        return {}
    if effort is None and model.thinking_off != "never":
        return {"thinking": {"type": model.thinking_off}}
    # Compaction and a new date change what stood before a bound block: then the API is to drop it, not the request.
    bound = {"block_binding": {"prefix_mismatch_behavior": "drop_block"}} if model.binds_thinking else {}
    thinking = {"type": "adaptive", "display": "summarized" if effort else "omitted", **bound}
    return {"thinking": thinking, "output_config": {"effort": EFFORTS.get(effort or "low", "medium")}}


def thinks(config: dict[str, Any]) -> bool:
    return config.get("thinking", {}).get("type") in ("enabled", "adaptive")


def takes_budget(turns: list[dict[str, Any]]) -> bool:
    """Whether calls that are just being answered were thought about: with a budget the API refuses others."""
    answering = any(block["type"] == "tool_result" for block in turns[-1]["content"])
    return not answering or len(turns) < 2 or turns[-2]["content"][0]["type"] in THINKING_TYPES


def mark_cached(system: list[Block], turns: list[dict[str, Any]]) -> None:
    """Have the prefix cached up to the system prompt and to each of the last turns of the user (four marks at most)."""
    ends = [turn["content"][-1] for turn in turns if turn["role"] == "user"][-CACHED_TURNS:]
    for block in [*system[-1:], *ends]:
        block["cache_control"] = CACHED

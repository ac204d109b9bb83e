import asyncio
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from httpx2 import AsyncClient

from agent import thread_manager
from services import messages
from services.messages import Message, NewMessage
from services.postgres import Pool
from services.settings import Settings
from tests.agent.seeds import make_context

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def stored(kind: str, content: Any) -> Message:
    now = datetime.now(UTC)
    return Message(uuid4(), 1, uuid4(), None, kind, True, content, {}, None, None, now, now)


@pytest.mark.parametrize(
    ("kind", "content", "shown"),
    [
        ("user", {"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}),
        ("user", '{"role": "user", "content": "hi"}', {"role": "user", "content": "hi"}),
        ("user", "hi", {"role": "user", "content": "hi"}),
        ("user", {"content": "hi"}, {"role": "user", "content": "hi"}),
        ("user", '{"my": "own json"}', {"role": "user", "content": '{"my": "own json"}'}),
        ("user", "{not json", {"role": "user", "content": "{not json"}),
        ("user", {"content": [{"type": "text", "text": "a"}, IMAGE, {"type": "hologram"}, 7]},
         {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}),
        ("assistant", {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
         {"role": "assistant", "content": "yes"}),
        ("assistant", {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         {"role": "assistant", "content": "ab"}),
    ],
)  # fmt: skip
def test_every_known_shape_of_a_message_is_shown_to_the_model(kind: str, content: Any, shown: dict[str, Any]) -> None:
    assert thread_manager.model_message(stored(kind, content)) == shown


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("user", None),
        ("user", 7),
        ("user", []),
        ("user", {}),
        ("user", ""),
        ("user", "  \n"),
        ("user", {"role": "user"}),
        ("user", {"role": ["user"], "content": "hi"}),
        ("user", {"role": "wizard", "content": "hi"}),
        ("user", {"role": "user", "content": {"deep": 1}}),
        ("user", {"role": "user", "content": [{"type": ["text"]}, {"type": "text", "text": None}]}),
        ("assistant", {"role": "assistant", "content": ""}),
        ("assistant", {"role": "assistant", "content": [IMAGE]}),
        ("tool", {"role": "tool", "content": "result"}),
        ("browser_state", {"content": "…"}),
    ],
)
def test_an_unknown_shape_is_left_out_and_breaks_nothing(kind: str, content: Any) -> None:
    history = [stored("user", "before"), stored(kind, content), stored("user", "after")]
    shown = thread_manager.to_model(history, "prompt")
    assert [said["content"] for said in shown] == ["prompt", "before", "after"]


def test_the_system_prompt_says_what_day_it_is() -> None:
    assert "2031-02-03" in thread_manager.system_prompt(date(2031, 2, 3))


async def test_a_message_whose_commit_was_not_heard_of_is_not_stored_twice(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    first = await thread_manager.store(ctx, NewMessage("assistant", {"role": "assistant", "content": "a"}))
    again = await thread_manager.store(ctx, NewMessage("assistant", {"role": "assistant", "content": "a"}))
    assert again == first
    assert len(await thread_manager.load_history(ctx)) == 2


async def test_storing_waits_until_postgres_is_back(
    pool: Pool, http: AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_manager, "RETRY_SECONDS", 0.01)
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    add, failures = messages.add, [ConnectionRefusedError(), asyncpg.CannotConnectNowError("starting up")]

    async def sometimes(*args: Any, **kwargs: Any) -> list[Message]:
        if failures:
            raise failures.pop()
        return await add(*args, **kwargs)

    monkeypatch.setattr(messages, "add", sometimes)
    async with asyncio.timeout(5):
        assert await thread_manager.store(ctx, NewMessage("assistant", "a"))
    assert not failures


async def test_a_closed_pool_is_not_waited_for(http: AsyncClient, pool: Pool, settings: Settings) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError):
        await thread_manager.load_history(ctx)

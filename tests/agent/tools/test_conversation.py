from uuid import uuid4

import pytest
from httpx2 import AsyncClient

from agent import thread_manager
from agent.tools import conversation
from agent.tools.base import BadArguments, ToolFailed
from agent.tools.standard import STANDARD
from services.messages import NewMessage
from services.postgres import Pool
from services.settings import Settings
from tests.agent.seeds import calling, make_context


@pytest.mark.parametrize("name", ["ask", "complete", "web_browser_takeover"])
async def test_what_speaks_to_the_person_ends_the_run(name: str) -> None:
    spoken = STANDARD.get(name)
    assert spoken
    result = await spoken.run(None, spoken.read({"text": "done?", "attachments": "a.txt, b c.png"}))
    assert (result.success, result.terminates) == (True, True)


def test_attachments_are_a_list_or_names_between_commas() -> None:
    for given in ("a.txt, b c.png", ["a.txt", "b c.png"], '["a.txt", "b c.png"]'):
        read = conversation.ask.read({"text": "?", "attachments": given})
        assert read["attachments"] == ["a.txt", "b c.png"]
    assert conversation.ask.read({"text": "?"})["attachments"] == []


def test_a_question_without_words_is_refused() -> None:
    with pytest.raises(BadArguments, match="text"):
        conversation.ask.read({"text": ""})


async def test_a_long_message_is_read_page_by_page(
    pool: Pool, http: AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "PAGE_CHARS", 4)
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    stored = await thread_manager.store(ctx, NewMessage("assistant", {"role": "assistant", "content": "abcdef"}))
    expand = conversation.expand_message
    first = await expand.run(calling(ctx), expand.read({"message_id": str(stored.message_id)}))
    assert first.output == "abcd\n[2 more characters; go on with offset 4]"
    rest = await expand.run(calling(ctx), expand.read({"message_id": str(stored.message_id), "offset": "4"}))
    assert rest.output == "ef"


async def test_a_message_of_another_thread_is_not_shown(pool: Pool, http: AsyncClient, settings: Settings) -> None:
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    other, _ = await make_context(pool, http, settings, "openai/m")
    stored = await thread_manager.store(other, NewMessage("assistant", {"role": "assistant", "content": "secret"}))
    expand = conversation.expand_message
    for message_id in (stored.message_id, uuid4()):
        with pytest.raises(ToolFailed, match="no message"):
            await expand.run(calling(ctx), expand.read({"message_id": str(message_id)}))


async def test_a_task_list_is_told_back_with_marks() -> None:
    listed = STANDARD.get("task_list")
    assert listed
    given = {"tasks": [{"title": "look", "status": "done"}, {"title": "leap"}]}
    assert (await listed.run(None, listed.read(given))).output == "1 of 2 done\n[x] look\n[ ] leap"

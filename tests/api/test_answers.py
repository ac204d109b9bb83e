import pytest
from pydantic import BaseModel

from api.answers import as_json
from api.routes.runs import RunPage, RunsOfThread
from api.routes.threads import MessagePage, ThreadPage
from services.postgres import Pool
from tests.api.conftest import Person


async def test_lists_are_written_as_their_models_would_be(ann: Person, pool: Pool) -> None:
    thread_id, project_id = await ann.make_thread("Blüten")
    await ann.make_run(thread_id)
    for content in ("Was gibt es?", {"role": "user", "content": [1.5, None, {"a": True}]}):
        await ann.post(f"/threads/{thread_id}/messages", json={"type": "user", "content": content})
    await pool.execute("""UPDATE projects SET sandbox = '{"id": "sandbox", "pass": "secret"}'""")
    models: dict[str, type[BaseModel]] = {
        "/threads": ThreadPage,
        f"/threads/{thread_id}/messages": MessagePage,
        "/agent-runs?limit=1": RunPage,
        f"/thread/{thread_id}/agent-runs": RunsOfThread,
    }
    for path, model in models.items():
        answer = await ann.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.content == model.model_validate_json(answer.content).model_dump_json().encode()
    listed = (await ann.get("/threads")).json()["threads"][0]
    opened = (await ann.get(f"/threads/{thread_id}")).json()
    assert listed == {name: opened[name] for name in listed}
    assert listed["project"]["sandbox"] == {"id": "sandbox"}
    assert listed["project"]["project_id"] == project_id


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        as_json({"of": object()})

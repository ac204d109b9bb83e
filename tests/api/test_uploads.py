import hashlib
import os
from uuid import UUID

import pytest
from httpx2 import Response

from services.postgres import Pool
from services.settings import ApiSettings, Settings
from tests.api.conftest import Person

MIB = 1024 * 1024
ECHO = {"prompt": "Look at these", "model_name": "demo/echo"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    small = ApiSettings(
        max_files=3, max_file_bytes=3 * MIB, max_upload_bytes=5 * MIB, max_body_bytes=4096, max_prompt_chars=100
    )
    return settings.model_copy(update={"api": small})


async def initiate(person: Person, fields: dict[str, str], *files: tuple[str, bytes]) -> Response:
    parts = [("files", (name, data, "text/plain")) for name, data in files]
    return await person.post(
        "/agent/initiate", files=[*((name, (None, value)) for name, value in fields.items()), *parts]
    )


async def count(pool: Pool, *tables: str) -> list[int]:
    return [await pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables]


async def test_one_request_makes_project_thread_message_and_run(ann: Person) -> None:
    made = (await initiate(ann, ECHO)).raise_for_status().json()
    assert set(made) == {"thread_id", "agent_run_id", "project_id"}
    thread = (await ann.get(f"/threads/{made['thread_id']}")).json()
    assert thread["project"]["name"] == "Look at these"
    assert [run["id"] for run in thread["recent_agent_runs"]] == [made["agent_run_id"]]
    (message,) = (await ann.get(f"/threads/{made['thread_id']}/messages")).json()["messages"]
    assert (message["type"], message["content"]) == ("user", {"role": "user", "content": "Look at these"})


async def test_a_urlencoded_form_will_do_when_there_are_no_files(ann: Person) -> None:
    assert (await ann.post("/agent/initiate", data=ECHO)).status_code == 200


async def test_form_fields_are_read_as_what_they_mean(ann: Person, pool: Pool) -> None:
    fields = {
        "enable_thinking": "true",
        "metadata": '{"a": [1]}',
        "priority": "7",
        "agent_id": "",
        "delay_seconds": "9",
    }
    made = (await initiate(ann, {**ECHO, **fields})).raise_for_status().json()
    run = await pool.fetchrow("SELECT * FROM agent_runs WHERE id = $1", UUID(made["agent_run_id"]))
    assert run
    assert (run["settings"]["enable_thinking"], run["metadata"], run["priority"]) == (True, {"a": [1]}, 7)
    assert run["not_before"]


async def test_files_are_stored_byte_for_byte(ann: Person, pool: Pool) -> None:
    files = [("a.bin", os.urandom(3 * MIB)), ("b.bin", os.urandom(MIB + 1)), ("empty", b"")]
    made = (await initiate(ann, ECHO, *files)).raise_for_status().json()
    rows = await pool.fetch("SELECT * FROM uploads WHERE agent_run_id = $1 ORDER BY name", UUID(made["agent_run_id"]))
    assert [row["name"] for row in rows] == ["a.bin", "b.bin", "empty"]
    for row, (_, data) in zip(rows, files, strict=True):
        chunks = await pool.fetch(
            "SELECT data FROM upload_chunks WHERE upload_id = $1 ORDER BY number", row["upload_id"]
        )
        assert b"".join(chunk["data"] for chunk in chunks) == data
        assert all(len(chunk["data"]) <= MIB for chunk in chunks)
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).digest())
        assert row["content_type"] == "text/plain"


async def test_the_first_message_names_each_file_by_its_safe_name(ann: Person) -> None:
    made = await initiate(ann, ECHO, ("../../etc/passwd", b"1"), ("报告.txt", b"2"), ("报告.txt", b"3"))
    (message,) = (await ann.get(f"/threads/{made.json()['thread_id']}/messages")).json()["messages"]
    assert message["content"]["content"].splitlines() == [
        "Look at these",
        "",
        "[Uploaded File: /workspace/passwd]",
        "[Uploaded File: /workspace/报告.txt]",
        "[Uploaded File: /workspace/报告 (2).txt]",
    ]


async def test_an_empty_file_input_of_a_browser_is_no_file(ann: Person, pool: Pool) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhi\r\n'
        b'--x\r\nContent-Disposition: form-data; name="files"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--x--\r\n"
    )
    answer = await ann.post(
        "/agent/initiate", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 200
    assert await count(pool, "uploads") == [0]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("big.bin", b"x" * (3 * MIB + 1))], ["big.bin", str(3 * MIB)]),
        ([("a", b"x" * 3 * MIB), ("b", b"x" * 3 * MIB)], ["together", str(5 * MIB)]),
        ([(f"{number}", b"") for number in range(4)], ["At most 3 files"]),
    ],
    ids=["one too large", "together too large", "too many"],
)
async def test_too_much_is_413_naming_what_and_the_limit(
    ann: Person, pool: Pool, files: list[tuple[str, bytes]], said: list[str]
) -> None:
    answer = await initiate(ann, ECHO, *files)
    assert answer.status_code == 413
    assert all(part in answer.json()["detail"] for part in said)
    assert await count(pool, "projects", "threads", "agent_runs", "uploads") == [0, 0, 0, 0]


@pytest.mark.parametrize("fields", [{"notes": "x" * 5000}, {f"f{number}": "" for number in range(101)}])
async def test_too_much_text_is_413(ann: Person, fields: dict[str, str]) -> None:
    assert (await initiate(ann, {**ECHO, **fields})).status_code == 413


async def test_strangers_cannot_make_us_spool(nobody: Person) -> None:
    assert (await initiate(nobody, ECHO, ("a", b"x" * MIB))).status_code == 401


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": "x" * 101}, "prompt"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({**ECHO, "metadata": "{"}, "metadata"),
        ({**ECHO, "metadata": "[]"}, "metadata"),
        ({**ECHO, "model_name": "nosuch/model"}, "model_name"),
        ({**ECHO, "priority": "high"}, "priority"),
        ({**ECHO, "target_agent_id": "x"}, "target_agent_id"),
        ({**ECHO, "delay_seconds": "-1"}, "delay_seconds"),
    ],
)
async def test_a_bad_field_of_a_form_is_named(ann: Person, pool: Pool, fields: dict[str, str], field: str) -> None:
    answer = await initiate(ann, fields, ("a", b"x"))
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]
    assert await count(pool, "projects") == [0]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncut'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: text/plain\r\n\r\nhi\r\n--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--\r\n',
        ),
        (f"multipart/form-data; boundary={'x' * 300}", b"--x--"),
    ],
    ids=["json", "no boundary", "junk", "cut", "no name", "not utf-8", "long boundary"],
)
async def test_what_is_no_form_is_422(ann: Person, content_type: str, body: bytes) -> None:
    answer = await ann.post("/agent/initiate", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 422


async def test_a_foreign_agent_leaves_nothing_behind(ann: Person, pool: Pool) -> None:
    answer = await initiate(ann, {**ECHO, "agent_id": str(UUID(int=7))}, ("a", b"x"))
    assert answer.status_code == 404
    assert await count(pool, "projects", "threads", "messages", "agent_runs", "uploads") == [0, 0, 0, 0, 0]

import hashlib
import os
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services import uploads
from services.postgres import Pool
from services.uploads import CHUNK_BYTES, MAX_NAME_BYTES, Upload, safe_name, safe_names
from tests.services.test_threads import make_run, make_thread


@pytest.mark.parametrize(
    ("given_name", "safe"),
    [
        ("notes.txt", "notes.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ann\\notes.txt", "notes.txt"),
        (".env", ".env"),
        ("..", "file"),
        (".", "file"),
        ("", "file"),
        ("a/", "file"),
        (" padded ", "padded"),
        ("two\nlines\x00.txt", "twolines.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("cafe\u0301.txt", "caf\u00e9.txt"),
        ("报告.pdf", "报告.pdf"),
    ],
)
def test_names_become_safe(given_name: str, safe: str) -> None:
    assert safe_name(given_name) == safe


@given(st.lists(st.text(max_size=300), max_size=20))
def test_safe_names_are_different_short_and_stay_in_their_folder(names: list[str]) -> None:
    safe = safe_names(names)
    assert len(set(safe)) == len(names)
    for name in safe:
        assert "/" not in name
        assert "\\" not in name
        assert name.strip(".") != ""
        assert name.isprintable() or " " in name or not name.isascii()
        assert len(name.encode()) <= MAX_NAME_BYTES


def test_a_long_name_keeps_its_suffix() -> None:
    assert safe_names(["报" * 300 + ".pdf"] * 2) == ["报" * 65 + ".pdf", "报" * 64 + " (2).pdf"]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
async def test_content_is_stored_in_chunks(pool: Pool, size: int) -> None:
    data = os.urandom(size)
    upload = Upload("a.bin", "text/plain", size, hashlib.sha256(data).digest(), BytesIO(data))
    async with pool.acquire() as conn:
        thread = await make_thread(conn)
        await uploads.store(conn, thread.project_id, await make_run(conn, thread), [upload])
        chunks = await conn.fetch("SELECT number, data FROM upload_chunks ORDER BY number")
    assert b"".join(chunk["data"] for chunk in chunks) == data
    assert [chunk["number"] for chunk in chunks] == list(range(-(-size // CHUNK_BYTES)))

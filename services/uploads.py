"""Files that came with a run and wait for its worker to put them into the sandbox."""

import asyncio
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO
from uuid import UUID

from services.postgres import Connection, Executor
from services.runs.fence import Fence, FenceLost

CHUNK_BYTES = 1024 * 1024
MAX_UNPLACED = 1000
MAX_NAME_BYTES = 200
UNNAMED = "file"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on our disk, complete and measured; `content` is read from where it stands."""

    name: str
    content_type: str
    size: int
    sha256: bytes
    content: BinaryIO


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """A file in our tables."""

    upload_id: UUID
    name: str
    size: int
    sha256: bytes


async def store(conn: Connection, project_id: UUID, run_id: UUID, uploads: Sequence[Upload]) -> None:
    """Store files in chunks of 1 MiB, one in memory at a time. Their names must differ."""
    for upload in uploads:
        upload_id = await conn.fetchval(
            """
            INSERT INTO uploads (project_id, agent_run_id, name, content_type, size, sha256)
            VALUES ($1, $2, $3, $4, $5, $6) RETURNING upload_id
            """,
            project_id,
            run_id,
            upload.name,
            upload.content_type,
            upload.size,
            upload.sha256,
        )
        await store_content(conn, upload_id, upload.content)


async def store_content(conn: Connection, upload_id: UUID, content: BinaryIO) -> None:
    number = 0
    while data := await asyncio.to_thread(content.read, CHUNK_BYTES):
        await conn.execute("INSERT INTO upload_chunks VALUES ($1, $2, $3)", upload_id, number, data)
        number += 1


async def unplaced(conn: Executor, project_id: UUID) -> list[StoredUpload]:
    """What was uploaded to a project and is not in its sandbox yet."""
    rows = await conn.fetch(
        """
        SELECT upload_id, name, size, sha256 FROM uploads WHERE project_id = $1 AND placed_at IS NULL
        ORDER BY created_at, name LIMIT $2
        """,
        project_id,
        MAX_UNPLACED,
    )
    return [StoredUpload(**row) for row in rows]


async def chunk(conn: Executor, upload_id: UUID, number: int) -> bytes | None:
    """One piece of a stored file; None behind its end."""
    data: bytes | None = await conn.fetchval(
        "SELECT data FROM upload_chunks WHERE upload_id = $1 AND number = $2", upload_id, number
    )
    return data


async def mark_placed(conn: Executor, upload_id: UUID, fence: Fence) -> None:
    """Note that a file is in the sandbox. Raises: FenceLost."""
    placed = await conn.fetchval(
        """
        UPDATE uploads SET placed_at = coalesce(placed_at, now()) WHERE upload_id = $1
        AND EXISTS (SELECT FROM agent_runs WHERE id = $2 AND attempt = $3 AND status = 'running') RETURNING true
        """,
        upload_id,
        fence.run_id,
        fence.attempt,
    )
    if not placed:
        raise FenceLost


def safe_names(names: Iterable[str]) -> list[str]:
    """Safe and different names, in the order of those that clients gave; `b.txt` twice gives `b (2).txt`."""
    chosen: list[str] = []
    taken: set[str] = set()
    for name in names:
        free = next(variant for variant in variants(safe_name(name)) if variant not in taken)
        taken.add(free)
        chosen.append(free)
    return chosen


def variants(name: str) -> Iterable[str]:
    yield name
    stem, suffix = split_suffix(name)
    number = 2
    while True:
        yield shortened(stem, f" ({number}){suffix}")
        number += 1


def safe_name(name: str) -> str:
    """The last part of a client's path, without control and format characters, of at most 200 bytes."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(c for c in unicodedata.normalize("NFC", last) if unicodedata.category(c)[0] != "C").strip()
    if printable.strip(".") == "":
        return UNNAMED
    return shortened(*split_suffix(printable))


def split_suffix(name: str) -> tuple[str, str]:
    suffix = PurePosixPath(name).suffix
    if len(suffix.encode()) > MAX_NAME_BYTES // 4:
        return name, ""
    return name.removesuffix(suffix), suffix


def shortened(stem: str, ending: str) -> str:
    room = MAX_NAME_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending

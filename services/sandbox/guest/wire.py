"""Frames of the agent's socket, for both of its sides: one connection is one call."""

import asyncio
import json
import struct
from typing import Any

JSON, DATA, END, RESULT, BEGUN = b"J", b"D", b"E", b"R", b"B"
HEADER = struct.Struct(">cI")
CHUNK = 64 * 1024
LARGEST_FRAME = 1024 * 1024

Answer = dict[str, Any]


class Failed(Exception):
    """What was asked cannot be done; the text says what."""


class Lost(Exception):
    """A later attempt, or another run, drives this project."""


def frame(kind: bytes, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def json_frame(content: Answer) -> bytes:
    return frame(JSON, json.dumps(content).encode())


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Raises: asyncio.IncompleteReadError at the end of the connection; ValueError for a frame that is too large."""
    kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
    if length > LARGEST_FRAME:
        raise ValueError(f"a frame of {length} bytes is too large")
    return kind, await reader.readexactly(length)

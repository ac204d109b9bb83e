"""Multipart forms whose files go to disk while they arrive, counted and hashed on the way."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.body_limit import widen
from api.errors import invalid
from services.errors import PayloadTooLarge
from services.settings import ApiSettings
from services.uploads import Upload, safe_names

MAX_FIELDS = 100


@dataclass(frozen=True, slots=True)
class Form:
    fields: dict[str, str]
    uploads: list[Upload]


@dataclass(slots=True)
class FilePart:
    name: str
    content_type: str
    content: BinaryIO
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes) -> None:
        self.content.write(data)
        self.digest.update(data)


@dataclass(slots=True)
class FieldPart:
    name: str
    data: bytearray = field(default_factory=bytearray)


@asynccontextmanager
async def read_form(request: Request, limits: ApiSettings) -> AsyncIterator[Form]:
    """The form of a request, multipart or urlencoded; its files live as long as the block.

    Raises: PayloadTooLarge naming the file and the limit; RequestValidationError for a malformed form.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"application/x-www-form-urlencoded":
        yield Form({name: str(value) for name, value in (await request.form()).items()}, [])
        return
    if content_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise invalid("Content-Type", "must be multipart/form-data with a boundary", where="header")
    widen(request, limits.max_upload_bytes + limits.max_body_bytes, too_large_together(limits))
    spool = Spool(limits)
    try:
        await spool.read(request, options[b"boundary"])
        yield spool.form()
    finally:
        spool.close()


class Spool:
    """What the multipart parser calls back; bytes of files wait in `pending` until a thread has written them."""

    def __init__(self, limits: ApiSettings) -> None:
        self.limits = limits
        self.fields: list[FieldPart] = []
        self.files: list[FilePart] = []
        self.pending: list[tuple[FilePart, bytes]] = []
        self.field_bytes = 0
        self.file_bytes = 0
        self.part: FieldPart | FilePart | None = None
        self.headers: dict[bytes, bytes] = {}
        self.header_name = b""
        self.header_value = b""
        self.complete = False

    async def read(self, request: Request, boundary: bytes) -> None:
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self.begin_part,
                    "on_header_field": self.add_header_name,
                    "on_header_value": self.add_header_value,
                    "on_header_end": self.end_header,
                    "on_headers_finished": self.open_part,
                    "on_part_data": self.add_data,
                    "on_end": self.end,
                },
            )
            async for chunk in request.stream():
                parser.write(chunk)
                if self.pending:
                    await asyncio.to_thread(self.write_pending)
            parser.finalize()
        except FormParserError as error:
            raise invalid("form", "is not valid multipart/form-data") from error
        if not self.complete:
            raise invalid("form", "ends before its last boundary")

    def begin_part(self) -> None:
        self.part = None
        self.headers = {}

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self.header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self.header_value += data[start:end]

    def end_header(self) -> None:
        self.headers[self.header_name.lower()] = self.header_value
        self.header_name = self.header_value = b""

    def open_part(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        if b"name" not in options:
            raise invalid("form", "has a part without a name")
        if b"filename" in options:
            self.open_file(text(options[b"filename"]))
        else:
            self.open_field(text(options[b"name"]))

    def open_field(self, name: str) -> None:
        if len(self.fields) >= MAX_FIELDS:
            raise PayloadTooLarge(f"At most {MAX_FIELDS} fields can come with one form.")
        self.part = FieldPart(name)
        self.fields.append(self.part)

    def open_file(self, name: str) -> None:
        if len(self.files) >= self.limits.max_files:
            raise PayloadTooLarge(f"At most {self.limits.max_files} files can come with one request.")
        content_type = text(self.headers.get(b"content-type", b"application/octet-stream"))
        self.part = FilePart(name, content_type, cast(BinaryIO, TemporaryFile()))  # noqa: SIM115 - closed by close()
        self.files.append(self.part)

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if isinstance(self.part, FilePart):
            self.add_file_data(self.part, data[start:end])
        elif self.part:
            self.add_field_data(self.part, data[start:end])

    def add_field_data(self, part: FieldPart, data: bytes) -> None:
        part.data += data
        self.field_bytes += len(data)
        if self.field_bytes > self.limits.max_body_bytes:
            raise PayloadTooLarge(f"The fields of the form are larger than {self.limits.max_body_bytes} bytes.")

    def add_file_data(self, part: FilePart, data: bytes) -> None:
        part.size += len(data)
        if part.size > self.limits.max_file_bytes:
            raise PayloadTooLarge(f"The file {part.name!r} is larger than {self.limits.max_file_bytes} bytes.")
        self.file_bytes += len(data)
        if self.file_bytes > self.limits.max_upload_bytes:
            raise PayloadTooLarge(too_large_together(self.limits))
        self.pending.append((part, data))

    def end(self) -> None:
        self.complete = True

    def write_pending(self) -> None:
        for part, data in self.pending:
            part.write(data)
        self.pending.clear()

    def form(self) -> Form:
        # A browser sends an empty, nameless file for a file input in which nothing was chosen.
        files = [part for part in self.files if part.name or part.size]
        for part in files:
            part.content.seek(0)
        uploads = [
            Upload(name, part.content_type, part.size, part.digest.digest(), part.content)
            for name, part in zip(safe_names(part.name for part in files), files, strict=True)
        ]
        return Form({part.name: field_text(part) for part in self.fields}, uploads)

    def close(self) -> None:
        for part in self.files:
            part.content.close()


def field_text(part: FieldPart) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError as error:
        raise invalid(part.name, "must be UTF-8 text") from error


def text(data: bytes) -> str:
    """A header's text: UTF-8 as browsers send it; what is not becomes the replacement character."""
    return data.replace(b"\0", b"").decode(errors="replace")


def too_large_together(limits: ApiSettings) -> str:
    return f"The files are together larger than {limits.max_upload_bytes} bytes."

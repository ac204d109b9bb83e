"""The console and the client, as files: read once, served with a policy that lets them run nothing of others."""

import gzip
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "console"
INDEX = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self';"
    " connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
"""`no-cache`: a browser keeps them, and asks each time whether they are still the same."""
TYPES = {".js": "text/javascript", ".ts": "text/plain", ".webmanifest": "application/manifest+json"}
ZIPPED = ("text/", "application/", "image/svg")


def install(app: FastAPI, folder: Path = FOLDER) -> None:
    """The index at `/`, all files of the folder at `/console/…`; no request names a path on the disk."""
    pages = pages_of(folder)

    async def show(request: Request) -> Response:
        page = pages.get(request.path_params.get("name", INDEX))
        if page is None:
            raise HTTPException(404)
        return page.answer(request)

    app.add_route("/", show, include_in_schema=False)
    app.add_route("/console/{name:path}", show, include_in_schema=False)


@cache
def pages_of(folder: Path) -> Mapping[str, "Page"]:
    return {path.relative_to(folder).as_posix(): Page.of(path) for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True, slots=True)
class Page:
    body: bytes
    zipped: bytes | None
    media_type: str
    tag: str

    @classmethod
    def of(cls, path: Path) -> "Page":
        body = path.read_bytes()
        media_type = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        zipped = gzip.compress(body, mtime=0) if media_type.startswith(ZIPPED) else None
        return cls(body, zipped, media_type, f'W/"{sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self.tag}
        if self.tag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        if self.zipped and "gzip" in request.headers.get("Accept-Encoding", ""):
            return Response(self.zipped, headers={**headers, "Content-Encoding": "gzip"}, media_type=self.media_type)
        return Response(self.body, headers=headers, media_type=self.media_type)

"""Where a port of a sandbox is seen from outside: a host name of its own that nobody can guess. Pure."""

import binascii
import hmac
from base64 import b32decode, b32encode
from dataclasses import dataclass
from uuid import UUID

from services.settings import Settings

PURPOSE = b"longrun preview"
SIGNATURE_BYTES = 15


@dataclass(frozen=True, slots=True)
class Preview:
    project_id: UUID
    port: int


def url(settings: Settings, preview: Preview) -> str | None:
    """The address that shows a port; None when this installation shows none (PREVIEW_URL is empty)."""
    template = settings.previews.url
    return template.replace("{label}", label(settings, preview)) if template else None


def label(settings: Settings, preview: Preview) -> str:
    """The first part of the host name, at most 63 characters: port, project and a signature over both."""
    project = text(preview.project_id.bytes)
    return f"{preview.port}-{project}-{text(signature(settings, preview))}"


def read(settings: Settings, host: str) -> Preview | None:
    """What a Host header asks for, or None if nobody was given that name."""
    port, _, rest = host.partition(".")[0].lower().partition("-")
    project, _, signed = rest.partition("-")
    try:
        preview = Preview(UUID(bytes=octets(project)), int(port))
        known = hmac.compare_digest(octets(signed), signature(settings, preview))
    except (ValueError, OverflowError, binascii.Error):
        return None
    return preview if known else None


def signature(settings: Settings, preview: Preview) -> bytes:
    key = hmac.digest(settings.auth.secret.get_secret_value().encode(), PURPOSE, "sha256")
    message = preview.project_id.bytes + preview.port.to_bytes(2)
    return hmac.digest(key, message, "sha256")[:SIGNATURE_BYTES]


def text(data: bytes) -> str:
    """As host names may be written: without capitals and padding."""
    return b32encode(data).decode().rstrip("=").lower()


def octets(written: str) -> bytes:
    """Raises: binascii.Error, ValueError."""
    return b32decode(written.upper() + "=" * (-len(written) % 8))

"""The Docker Engine API, as far as sandboxes need it: what Docker and Podman both answer to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from httpx2 import Client, HTTPError, HTTPTransport, Response

from services.sandbox.protocol import SandboxUnavailable

ANSWER_WITHIN = 30.0
SAID_CHARS = 500
LOG_LINES = "20"
LOG_HEADER = 8

Configuration = Mapping[str, object]


class Refused(Exception):
    """The engine answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Engine:
    """Calls that block, each for ANSWER_WITHIN seconds at most.

    Every call raises SandboxUnavailable when the engine cannot be reached or refuses for a reason not named here.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.socket = url.removeprefix("unix://") if url.startswith("unix://") else None
        self.base = "http://docker" if self.socket else url.replace("tcp://", "http://", 1)

    def create(self, name: str, configuration: Configuration) -> bool:
        """Make a container; False when one of that name is there already."""
        try:
            self.call("POST", "/containers/create", params={"name": name}, json=configuration)
        except Refused as refused:
            if refused.status == 409:
                return False
            if refused.status == 404:
                image = configuration["Image"]
                raise SandboxUnavailable(
                    f"No sandbox: the engine has no image {image}; build or pull it, or name another by SANDBOX_IMAGE."
                ) from refused
            raise unexpected("make", refused) from refused
        return True

    def start(self, name: str) -> None:
        try:
            self.call("POST", f"/containers/{quote(name)}/start")
        except Refused as refused:
            raise unexpected("start", refused) from refused

    def state(self, name: str) -> dict[str, Any] | None:
        """What it says of a container's processes; None when there is no such container."""
        try:
            state: dict[str, Any] = self.call("GET", f"/containers/{quote(name)}/json").json()["State"]
        except Refused as refused:
            if refused.status == 404:
                return None
            raise unexpected("inspect", refused) from refused
        return state

    def log(self, name: str) -> str:
        """The last lines that the first process of a container wrote; empty when there is none."""
        wanted = {"stdout": "true", "stderr": "true", "tail": LOG_LINES}
        try:
            return unframed(self.call("GET", f"/containers/{quote(name)}/logs", params=wanted).content)
        except Refused:
            return ""

    def remove(self, name: str) -> None:
        """End a container's processes and remove it; its volume stays."""
        self.gone("remove", f"/containers/{quote(name)}")

    def remove_volume(self, name: str) -> None:
        self.gone("remove the volume of", f"/volumes/{quote(name)}")

    def gone(self, what: str, path: str) -> None:
        try:
            self.call("DELETE", path, params={"force": "true"})
        except Refused as refused:
            if refused.status != 404:
                raise unexpected(what, refused) from refused

    def call(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, json: Configuration | None = None
    ) -> Response:
        """Raises: Refused; SandboxUnavailable when nobody answers."""
        with self.reached() as client:
            response = client.request(method, path, params=params, json=json)
        if response.is_error:
            raise Refused(response.status_code, said(response))
        return response

    @contextmanager
    def reached(self) -> Iterator[Client]:
        if self.socket and not Path(self.socket).exists():
            raise unreachable(self.url, "there is no such socket")
        # Nothing here speaks TLS: without `verify` each call would read the machine's certificates.
        transport = HTTPTransport(uds=self.socket, verify=False, trust_env=False)
        try:
            with Client(transport=transport, base_url=self.base, timeout=ANSWER_WITHIN, trust_env=False) as client:
                yield client
        except HTTPError as error:
            raise unreachable(self.url, str(error) or type(error).__name__) from error


def said(response: Response) -> str:
    """The engine's own words; podman and proxies also answer in plain text."""
    try:
        return str(response.json()["message"])[:SAID_CHARS]
    except (ValueError, KeyError, TypeError):
        return response.text[:SAID_CHARS].strip()


def unreachable(url: str, why: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"No sandbox: no Docker engine answers at {url} ({why}); start it, or name it by SANDBOX_DOCKER_URL."
    )


def unexpected(what: str, refused: Refused) -> SandboxUnavailable:
    return SandboxUnavailable(f"No sandbox: the engine does not {what} the container ({refused.status}: {refused}).")


def unframed(log: bytes) -> str:
    """The text of a log, whose pieces have a header each: the stream, three zeros and four bytes of length."""
    text = b""
    while len(log) >= LOG_HEADER:
        length = int.from_bytes(log[4:LOG_HEADER], "big")
        text, log = text + log[LOG_HEADER : LOG_HEADER + length], log[LOG_HEADER + length :]
    return text.decode(errors="replace").strip()

"""The guard for outgoing URLs: what a model, a page or a stranger names is reached on the public internet only."""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any

import httpcore2
import httpx2
from httpcore2 import SOCKET_OPTION, AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from services.addresses import Address, Reach, parse, reach
from services.http import tls
from services.settings import OutgoingSettings, Settings

Resolve = Callable[[str, int], Awaitable[list[Address]]]

NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
WELL_KNOWN = range(1024)
WEB_PORTS = frozenset({80, 443})
MAX_ADDRESSES = 4
MAX_LOOKUPS = 16
MAX_REDIRECTS = 5
LIMITS = httpx2.Limits(max_connections=20, max_keepalive_connections=5, keepalive_expiry=30)


class ForbiddenUrl(Exception):
    """A URL that must not be reached from here; the text is a sentence that names the host and no address."""


class BodyTooLarge(Exception):
    """A response's body is larger than what was allowed for it."""


def open_guarded_client(
    settings: Settings,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: httpx2.Timeout | None = None,
    follow_redirects: bool = False,
    resolve: Resolve | None = None,
    network: AsyncNetworkBackend | None = None,
) -> httpx2.AsyncClient:
    """A client for URLs that somebody else chose; who opens it closes it. Cheap: open one per task, it keeps cookies.

    Each hop is judged anew, by the address that is then connected to. The environment's proxies are not used: they
    would resolve names themselves. A followed redirect takes `headers` along (all but Authorization) to any host, so
    leave it off where they are secret. Requests raise ForbiddenUrl besides httpx2's errors, of which InvalidURL is no
    HTTPError.
    """
    guard = GuardedNetwork(settings.outgoing, resolve or look_up, network or AnyIOBackend())
    return httpx2.AsyncClient(
        transport=GuardedTransport(settings.outgoing, guard),
        headers={"User-Agent": "longrun", **(headers or {})},
        timeout=timeout or timeouts(settings.outgoing),
        follow_redirects=follow_redirects,
        max_redirects=MAX_REDIRECTS,
        trust_env=False,
    )


def timeouts(settings: OutgoingSettings) -> httpx2.Timeout:
    connect, read = settings.connect_timeout.total_seconds(), settings.read_timeout.total_seconds()
    return httpx2.Timeout(read, connect=connect)


def check_url(url: str | httpx2.URL, settings: OutgoingSettings) -> httpx2.URL:
    """A URL as far as it can be judged without looking its host up.

    Raises: ForbiddenUrl.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise ForbiddenUrl(f"This is no URL: {shown(str(error))}") from error
    if parsed.scheme not in ("http", "https"):
        raise ForbiddenUrl("Only URLs that begin with http:// or https:// can be opened.")
    if parsed.userinfo:
        raise ForbiddenUrl(f"The URL of {shown(parsed.host)} carries a user name; such URLs are not opened.")
    check_host(parsed.raw_host.decode("ascii"))
    check_port(parsed.host, parsed.port, settings)
    return parsed


def check_host(host: str) -> None:
    """Names and addresses in their canonical form only: every reader must understand the same host."""
    if parse(host):
        return
    if not NAME.fullmatch(host) or NUMBER.fullmatch(host.rpartition(".")[2]):
        raise ForbiddenUrl(f"{shown(host) or 'An empty name'} is not a valid host name.")


def check_port(host: str, port: int | None, settings: OutgoingSettings) -> None:
    if port is None or port in WEB_PORTS or may_be_private(host, settings):
        return
    if port in WELL_KNOWN or port > 65535:
        raise ForbiddenUrl(f"Port {port} of {shown(host)} is no port of the web.")


def may_be_private(host: str, settings: OutgoingSettings) -> bool:
    return settings.allow_private or host in map(str.lower, settings.allowed_hosts)


def shown(host: str) -> str:
    return host if len(host) <= 100 else f"{host[:100]}…"


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """HTTP over a guarded network; also judges each request's URL, and reads no redirect's body."""

    def __init__(self, settings: OutgoingSettings, network: "GuardedNetwork") -> None:
        self.settings = settings
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls(),
            max_connections=LIMITS.max_connections,
            max_keepalive_connections=LIMITS.max_keepalive_connections,
            keepalive_expiry=LIMITS.keepalive_expiry,
            network_backend=network,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises: ForbiddenUrl."""
        check_url(request.url, self.settings)
        response = await super().handle_async_request(request)
        if not response.has_redirect_location:
            return response
        await response.aclose()
        kept = [(name, value) for name, value in response.headers.multi_items() if not describes_body(name)]
        return httpx2.Response(response.status_code, headers=kept, stream=httpx2.ByteStream(b""))


def describes_body(header: str) -> bool:
    return header.lower() in ("content-encoding", "content-length", "transfer-encoding")


class GuardedNetwork(AsyncNetworkBackend):
    """Looks a host up once, and connects to what was judged: a name cannot lead elsewhere a moment later.

    TLS goes on checking the certificate against the host of the URL.
    """

    def __init__(self, settings: OutgoingSettings, resolve: Resolve, inner: AsyncNetworkBackend) -> None:
        self.settings = settings
        self.resolve = resolve
        self.inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        """Raises: ForbiddenUrl; httpcore2.ConnectError, ConnectTimeout."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self.permitted(host, port)
                patience = timeout / len(addresses) if timeout else None
                return await self.connect_first(host, addresses, port, patience)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{shown(host)} could not be reached in time.") from error

    async def permitted(self, host: str, port: int) -> list[Address]:
        """The addresses of a host that may be connected to, at least one."""
        known = parse(host)
        found = [known] if known else await self.resolve(host, port)
        allowed = {Reach.PUBLIC, Reach.PRIVATE} if may_be_private(host, self.settings) else {Reach.PUBLIC}
        permitted = [address for address in found if reach(address) in allowed]
        if not permitted:
            raise ForbiddenUrl(f"{shown(host)} is not on the public internet; it is not opened from here.")
        return permitted[:MAX_ADDRESSES]

    async def connect_first(
        self, host: str, addresses: list[Address], port: int, patience: float | None
    ) -> AsyncNetworkStream:
        refused: Exception | None = None
        for address in addresses:
            try:
                stream = await self.inner.connect_tcp(str(address), port, timeout=patience)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                refused = error
                continue
            if leads_home(stream) and not may_be_private(host, self.settings):
                await stream.aclose()
                raise ForbiddenUrl(f"{shown(host)} is this server itself; it is not opened from here.")
            return GuardedStream(stream)
        raise httpcore2.ConnectError(f"{shown(host)} could not be reached.") from refused

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedStream(AsyncNetworkStream):
    """A connection whose faults are all httpcore's: it lets those of TLS through that come after the handshake, as when
    a server wants a certificate of ours.
    """

    def __init__(self, inner: AsyncNetworkStream) -> None:
        self.inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Raises: httpcore2.ReadError, ReadTimeout."""
        try:
            return await self.inner.read(max_bytes, timeout)
        except ssl.SSLError as error:
            raise httpcore2.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Raises: httpcore2.WriteError, WriteTimeout."""
        try:
            await self.inner.write(buffer, timeout)
        except ssl.SSLError as error:
            raise httpcore2.WriteError(str(error)) from error

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        return GuardedStream(await self.inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


def leads_home(stream: AsyncNetworkStream) -> bool:
    """A public address may be this machine's own, where services listen that a firewall keeps from everybody else."""
    here, there = stream.get_extra_info("client_addr"), stream.get_extra_info("server_addr")
    return bool(here and there and here[0] == there[0])


LOOKUPS = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="look-up")
"""Threads of their own: names that nobody answers for would use up the few of the loop, which our stores need."""


async def look_up(host: str, port: int) -> list[Address]:
    """The addresses of a name, by the system's resolver.

    Raises: httpcore2.ConnectError when there is none.
    """
    asking = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(LOOKUPS, asking)
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"There is no address for {shown(host)}.") from error
    return [address for *_, place in found if (address := parse(str(place[0])))]


async def read_bounded(response: httpx2.Response, limit: int) -> bytes:
    """The body of a streamed response, unpacked, if it is at most `limit` bytes.

    Raises: BodyTooLarge as soon as it is known, with at most 1 MiB beyond the limit in memory; httpx2's errors.
    """
    told = response.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise BodyTooLarge(f"It is larger than {limit:,} bytes.")
    parts: list[bytes] = []
    left = limit
    async with aclosing(response.aiter_bytes()) as body:
        async for part in body:
            left -= len(part)
            if left < 0:
                raise BodyTooLarge(f"It is larger than {limit:,} bytes.")
            parts.append(part)
    return b"".join(parts)

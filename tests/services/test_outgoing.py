"""The guard, over real connections to servers on loopback; only the resolver's answers are scripted."""

import asyncio
import gzip
import socket
import ssl
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from httpcore2 import SOCKET_OPTION, AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from services import outgoing
from services.addresses import Address
from services.outgoing import BodyTooLarge, ForbiddenUrl, Resolve, check_url, open_guarded_client, read_bounded
from services.settings import OutgoingSettings, Settings
from tests.sites import Page, redirect, site
from tests.usual import settings_with
from tests.waiting import PATIENT

PUBLIC = "93.184.216.34"


def allowing(**outgoing: object) -> Settings:
    return settings_with(outgoing=OutgoingSettings(**outgoing))  # type: ignore[arg-type]


GUARDED, OPEN = allowing(), allowing(allow_private=True)


class Network(AsyncNetworkBackend):
    """Leads every connection to a server of the test, and remembers where it was to go."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.targets: list[str] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        self.targets.append(host)
        return Elsewhere(await AnyIOBackend().connect_tcp("127.0.0.1", self.port, timeout))


class Elsewhere(AsyncNetworkStream):
    """A stream that tells the addresses of two different machines."""

    def __init__(self, stream: AsyncNetworkStream) -> None:
        self.stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self.stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    def get_extra_info(self, info: str) -> object:
        return {"client_addr": ("192.168.1.2", 1), "server_addr": (PUBLIC, 80)}.get(
            info, self.stream.get_extra_info(info)
        )


def answers(*rounds: Iterable[str]) -> Resolve:
    """A resolver that says something else each time it is asked, the last thing for ever."""
    left = [[ip_address(text) for text in texts] for texts in rounds]

    async def resolve(host: str, port: int) -> list[Address]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def fetch(settings: Settings, url: str, **options: object) -> httpx2.Response:
    async with open_guarded_client(settings, follow_redirects=True, **options) as client:  # type: ignore[arg-type]
        return await client.get(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://017700000001/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0/",
        "http://1.2.3.0x4/",
        "http://localhost./",
        "http://example.com./",
        "http://.example.com/",
        "http://exa%6dple.com/",
        "http://a b/",
        "http:///path",
        "http://[fe80::1%25eth0]/",
        "http://user:secret@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://example.com:0/",
        "http://example.com:22/",
        "http://example.com:99999/",
        "http://[::1/",
        "file:///etc/passwd",
        "ftp://example.com/",
        "//example.com/",
        "example.com",
        "",
        "http://" + "a" * 300 + "/",
        "http://" + "①" * 3000 + "/",
        "http://example.com:" + "x" * 3000,
    ],
)
def test_a_url_that_readers_could_understand_differently_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenUrl) as refused:
        check_url(url, GUARDED.outgoing)
    assert "secret" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://a_b.example.com:8443/x?y#z",
        "http://[2606:4700::1111]/",
        "HTTP://EXAMPLE.com:80",
        "http://münchen.de/",
    ],
)
def test_an_ordinary_url_is_accepted(url: str) -> None:
    assert check_url(url, GUARDED.outgoing).host


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254"]
)
async def test_what_is_not_on_the_public_internet_is_refused_before_a_connection(host: str) -> None:
    async with site({"/": Page(b"secret")}) as server:
        with pytest.raises(ForbiddenUrl) as refused:
            await fetch(GUARDED, server.url(host=host))
        assert server.asked == []
    assert host.strip("[]") in str(refused.value)


async def test_a_name_that_leads_inside_is_refused_without_telling_where_it_leads() -> None:
    network = Network(1)
    with pytest.raises(ForbiddenUrl) as refused:
        await fetch(GUARDED, "http://intranet.example.com/", resolve=answers(["10.1.2.3"]), network=network)
    assert str(refused.value) == "intranet.example.com is not on the public internet; it is not opened from here."
    assert network.targets == []


async def test_a_name_is_looked_up_once_and_its_judged_address_connected_to() -> None:
    resolve = answers([PUBLIC], ["127.0.0.1"])
    async with site({"/": Page(b"hello")}) as server:
        network = Network(server.port)
        async with open_guarded_client(GUARDED, resolve=resolve, network=network) as client:
            assert (await client.get("http://rebinding.example.com/")).text == "hello"
            with pytest.raises(ForbiddenUrl, match=r"rebinding\.example\.com"):
                await client.get("http://rebinding.example.com/")
        assert network.targets == [PUBLIC]
        assert [each.headers["host"] for each in server.asked] == ["rebinding.example.com"]


async def test_of_mixed_addresses_only_the_public_ones_are_connected_to() -> None:
    resolve = answers(["127.0.0.1", "10.0.0.1", PUBLIC])
    async with site({"/": Page(b"hello")}) as server:
        network = Network(server.port)
        await fetch(GUARDED, "http://mixed.example.com/", resolve=resolve, network=network)
    assert network.targets == [PUBLIC]


async def test_a_public_address_that_is_this_machine_is_refused() -> None:
    class Own(Network):
        async def connect_tcp(self, *args: object, **options: object) -> AsyncNetworkStream:
            return await AnyIOBackend().connect_tcp("127.0.0.1", self.port)

    async with site({"/": Page(b"secret")}) as server:
        with pytest.raises(ForbiddenUrl, match="this server itself"):
            await fetch(GUARDED, "http://own.example.com/", resolve=answers([PUBLIC]), network=Own(server.port))
        assert server.asked == []


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:{port}/inside", "http://localhost:{port}/inside", "http://2130706433/"]
)
async def test_a_redirect_to_a_private_address_is_refused(location: str) -> None:
    async with site({}) as server:
        server.pages = {"/": redirect(location.format(port=server.port)), "/inside": Page(b"secret")}
        network = Network(server.port)

        async def resolve(host: str, port: int) -> list[Address]:
            return [ip_address(PUBLIC)] if host == "outside.example.com" else await outgoing.look_up(host, port)

        with pytest.raises(ForbiddenUrl):
            await fetch(GUARDED, "http://outside.example.com/", resolve=resolve, network=network)
        assert server.paths == ["/"]


async def test_a_redirect_to_a_file_or_with_a_password_is_refused() -> None:
    async with site({}) as server:
        for location in ("file:///etc/passwd", f"http://user:pw@127.0.0.1:{server.port}/"):
            server.pages = {"/": redirect(location)}
            with pytest.raises(ForbiddenUrl):
                await fetch(OPEN, server.url())


async def test_redirects_are_followed_to_a_bound_and_their_bodies_never_read() -> None:
    bomb = gzip.compress(bytes(1_000_000))
    hop = Page(bomb, status=302, headers={"Location": "/end", "Content-Encoding": "gzip"}, endless=True)
    async with site({"/": hop, "/end": Page(b"here"), "/round": redirect("/round")}) as server:
        response = await fetch(OPEN, server.url())
        assert (response.text, response.history[0].content) == ("here", b"")
        with pytest.raises(httpx2.TooManyRedirects):
            await fetch(OPEN, server.url("/round"))


async def test_an_operator_may_open_private_networks_or_single_hosts_but_not_metadata() -> None:
    async with site({"/": Page(b"mine")}) as server:
        assert (await fetch(OPEN, server.url())).text == "mine"
        named = allowing(allowed_hosts=("LocalHost",))
        assert (await fetch(named, server.url(host="localhost"))).text == "mine"
        with pytest.raises(ForbiddenUrl):
            await fetch(named, server.url())
    for host in ("169.254.169.254", "100.100.100.200", "[fd00:ec2::254]", "0.0.0.0"):
        with pytest.raises(ForbiddenUrl):
            await fetch(OPEN, f"http://{host}/")


async def test_a_name_that_does_not_exist_or_is_not_answered_for_is_an_error_in_time() -> None:
    with pytest.raises(httpx2.ConnectError, match="no address for nowhere"):
        await fetch(GUARDED, "http://nowhere.invalid/")

    async def silent(host: str, port: int) -> list[Address]:
        await asyncio.sleep(3600)
        return []

    async with asyncio.timeout(PATIENT):
        with pytest.raises(httpx2.ConnectTimeout):
            await fetch(allowing(connect_timeout="100ms"), "http://slow.example.com/", resolve=silent)


async def test_a_second_address_is_tried_when_the_first_does_not_answer() -> None:
    async with site({"/": Page(b"hello")}) as server:
        resolve = answers(["127.0.0.9", "127.0.0.1"])
        assert (await fetch(OPEN, server.url(host="two.example.com"), resolve=resolve)).text == "hello"


async def test_a_server_that_hangs_is_given_up() -> None:
    patience = allowing(allow_private=True, read_timeout="100ms")
    async with site({"/": Page(hangs=True)}) as server, asyncio.timeout(PATIENT):
        with pytest.raises(httpx2.ReadTimeout):
            await fetch(patience, server.url())


async def test_the_environment_names_no_proxy_for_guarded_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site({"/": Page(b"proxy")}) as proxy, site({"/": Page(b"direct")}) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url())
        monkeypatch.setenv("ALL_PROXY", proxy.url())
        assert (await fetch(OPEN, server.url())).text == "direct"
        assert proxy.asked == []


async def read(url: str, limit: int) -> bytes:
    async with open_guarded_client(OPEN) as client, client.stream("GET", url) as response:
        return await read_bounded(response, limit)


async def test_a_body_is_read_up_to_its_limit() -> None:
    packed = {"Content-Encoding": "gzip"}
    async with site({"/": Page(b"x" * 1000), "/packed": Page(gzip.compress(b"y" * 1000), headers=packed)}) as server:
        assert await read(server.url(), 1000) == b"x" * 1000
        assert await read(server.url("/packed"), 1000) == b"y" * 1000
        for path in ("/", "/packed"):
            with pytest.raises(BodyTooLarge, match="999 bytes"):
                await read(server.url(path), 999)


async def test_an_endless_body_and_a_packed_bomb_end_at_the_limit() -> None:
    bomb = gzip.compress(gzip.compress(bytes(300_000_000), 1), 9)
    twice = {"Content-Encoding": "gzip, gzip"}
    async with site({"/": Page(b"z" * 100_000, endless=True), "/bomb": Page(bomb, headers=twice)}) as server:
        with pytest.raises(BodyTooLarge):
            await read(server.url(), 1_000_000)
        with pytest.raises(BodyTooLarge):
            await read(server.url("/bomb"), 1_000_000)
        assert server.sent < 20_000_000


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A key and a certificate for `name`, signed by itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    (folder / "cert.pem").write_bytes(built.public_bytes(pem))
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_is_checked_against_the_name_and_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path, "shop.example.com")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    told: list[str | None] = []
    serving.sni_callback = lambda _socket, name, _context: told.append(name)
    monkeypatch.setattr(outgoing, "tls", lambda: ssl.create_default_context(cafile=str(cert)))
    async with site({"/": Page(b"safe")}, ssl=serving) as server:
        resolve = answers(["127.0.0.1"])
        assert (await fetch(OPEN, server.url(host="shop.example.com"), resolve=resolve)).text == "safe"
        with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
            await fetch(OPEN, server.url(host="other.example.com"), resolve=resolve)
    assert told == ["shop.example.com", "other.example.com"]


async def test_a_server_that_wants_a_certificate_after_the_handshake_is_a_fault_of_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path, "shop.example.com")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    serving.load_verify_locations(cert)
    serving.verify_mode, serving.minimum_version = ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_3
    monkeypatch.setattr(outgoing, "tls", lambda: ssl.create_default_context(cafile=str(cert)))

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with serving.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as talk:
            with suppress(ssl.SSLError):
                talk.do_handshake()
            over.wait(PATIENT)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = asyncio.create_task(asyncio.to_thread(refuse, listener))
        url = f"https://shop.example.com:{listener.getsockname()[1]}/"
        try:
            with pytest.raises(httpx2.TransportError, match=r"(?i)certificate required"):
                await fetch(OPEN, url, resolve=answers(["127.0.0.1"]))
        finally:
            over.set()
            await refusing

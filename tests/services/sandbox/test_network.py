"""A sandbox with a network: what it reaches, what it does not, and the layer that holds."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from services.embedded import sandboxes
from services.sandbox import places, uplink
from services.sandbox.bubblewrap import Bubblewrap
from services.sandbox.monitor.processes import below
from services.sandbox.protocol import Sandbox, SandboxUnavailable, Spec
from services.sandbox.wishes import spec_for
from services.settings import SandboxSettings
from tests.services.sandbox import attacks
from tests.services.sandbox.conftest import start_as
from tests.services.sandbox.test_attacks import outcomes
from tests.waiting import eventually

OUTSIDE, OWN = "45.83.64.2", "45.83.64.1"
NAMESPACE, LINK, LINK_THERE = (f"lr{os.getpid()}{name}" for name in ("", "-own", "-in"))
STARTERS = ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"]
SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 8099))
print("listening", flush=True)
while True:
    listener.accept()[0].sendall(b"hello from outside")
"""


@pytest.fixture(scope="module")
def slirp(tmp_path_factory: pytest.TempPathFactory) -> str:
    return asyncio.run(sandboxes.slirp(tmp_path_factory.mktemp("apt") / "log"))


@pytest.fixture(scope="module")
def settings(folder: Path, slirp: str) -> SandboxSettings:
    return SandboxSettings(folder=str(folder), network=True, slirp=slirp, processes=64)


@pytest.fixture(params=STARTERS)
async def open_sandbox(
    request: pytest.FixtureRequest, settings: SandboxSettings, project_id: UUID
) -> AsyncIterator[Sandbox]:
    """A sandbox with a network that root, or an ordinary user, has started."""
    provider = Bubblewrap(settings)
    user = os.geteuid() if request.param == STARTERS[0] else 54321
    await asyncio.to_thread(start_as, user, provider, project_id)
    yield await provider.open(project_id)
    await provider.delete(project_id)


@contextmanager
def listening(address: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, kind) as made:
        made.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            made.listen()
        made.setblocking(False)
        yield made


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def outside() -> Iterator[str]:
    """A server at a public address, in a network namespace that this machine has a link to."""
    ip("netns", "add", NAMESPACE)
    ip("link", "add", LINK, "type", "veth", "peer", "name", LINK_THERE, "netns", NAMESPACE)
    ip("addr", "add", f"{OWN}/24", "dev", LINK)
    ip("link", "set", LINK, "up")
    ip("-n", NAMESPACE, "addr", "add", f"{OUTSIDE}/24", "dev", LINK_THERE)
    ip("-n", NAMESPACE, "link", "set", LINK_THERE, "up")
    command = ["ip", "netns", "exec", NAMESPACE, "python3", "-c", SERVER, OUTSIDE]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.stdout
    assert server.stdout.readline() == b"listening\n"
    yield OUTSIDE
    server.kill()
    server.wait()
    server.stdout.close()
    ip("link", "del", LINK)
    ip("netns", "del", NAMESPACE)


def own_addresses() -> list[str]:
    return sorted({*uplink.own_addresses(), "127.0.0.1"})


async def reached(sandbox: Sandbox, *targets: tuple[str, int]) -> dict[str, str]:
    return await outcomes(sandbox, attacks.REACH.format(targets=targets))


async def test_nothing_of_this_machine_is_reached_whatever_a_socket_asks_for(open_sandbox: Sandbox) -> None:
    addresses = [*own_addresses(), uplink.GATEWAY, uplink.RESOLVER, "0.0.0.0", "255.255.255.255"]
    with listening("0.0.0.0") as listener:
        port = listener.getsockname()[1]
        seen = await reached(open_sandbox, *[(address, port) for address in addresses])
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert len(seen) == 4 * len(addresses)
    assert "connected" not in seen.values()


async def test_private_addresses_and_the_metadata_service_are_refused_at_once_by_the_routes(
    open_sandbox: Sandbox,
) -> None:
    inside = ("0.0.0.0/8", "127.0.0.0/8")  # both are the sandbox's own
    refused = [str(ip_network(name)[9]) for name in uplink.REFUSED if name not in inside]
    seen = await reached(open_sandbox, *[(address, 80) for address in ("169.254.169.254", *refused)])
    plain = {name: outcome for name, outcome in seen.items() if name.startswith("plain/")}
    assert plain["plain/169.254.169.254"] == "No route to host"
    assert set(plain.values()) <= {"No route to host", "Network is unreachable"}
    assert "connected" not in seen.values()


async def test_the_interface_passes_no_datagram_to_groups_and_neighbours(open_sandbox: Sandbox) -> None:
    groups = ("239.255.255.250", "224.0.0.251", "255.255.255.255", "10.0.2.255", "10.0.2.77")
    with listening("0.0.0.0", socket.SOCK_DGRAM) as listener:
        for group in groups[:2]:
            for own in own_addresses():
                with suppress(OSError):
                    joined = socket.inet_aton(group) + socket.inet_aton(own)
                    listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        sent = await outcomes(open_sandbox, attacks.GROUPS.format(groups=groups, port=listener.getsockname()[1]))
        assert set(sent) == {f"{way}/{group}" for group in groups for way in ("plain", "bound")}
        frames = int((await open_sandbox.exec("awk '/tap0/ {print $11}' /proc/net/dev")).output)
        await asyncio.sleep(0.3)
        with pytest.raises(BlockingIOError):
            listener.recv(100)
    assert frames == 0


async def test_loopback_inside_is_its_own(open_sandbox: Sandbox) -> None:
    served = "python3 -m http.server 8080 --bind 127.0.0.1 --directory /usr/share/doc & sleep 0.1;"
    fetch = "for i in $(seq 300); do (: < /dev/tcp/127.0.0.1/8080) 2>/dev/null && echo there && break; sleep 0.1; done"
    assert b"there" in (await open_sandbox.exec(f"({served}) >/dev/null 2>&1; {fetch}")).output


async def test_names_are_resolved_only_where_the_network_is_open(settings: SandboxSettings, project_id: UUID) -> None:
    provider = Bubblewrap(settings)
    sandbox = await provider.open(project_id)
    assert (await sandbox.exec("cat /etc/resolv.conf")).output == b"nameserver 10.0.2.3\n"
    await provider.stop(project_id)
    sandbox = await provider.open(project_id, spec=Spec())
    assert (await sandbox.exec("cat /etc/resolv.conf")).exit_code == 1
    assert b"tap0" not in (await sandbox.exec("cat /proc/net/dev")).output


def stack_of(provider: Bubblewrap, project_id: UUID) -> int:
    """The pid of a sandbox's slirp4netns."""
    parent = places.of(provider.root, project_id).monitor() or 0
    for pid in below(parent):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"slirp4netns\0"):
            return pid
    raise AssertionError("there is no slirp4netns")


async def test_when_the_stack_dies_the_sandbox_has_no_network_and_goes_on(
    settings: SandboxSettings, project_id: UUID
) -> None:
    provider = Bubblewrap(settings)
    sandbox = await provider.open(project_id)
    os.kill(stack_of(provider, project_id), signal.SIGKILL)
    log = places.of(provider.root, project_id).folder / "log"
    await eventually(lambda: "slirp4netns is gone" in log.read_text())
    seen = await reached(sandbox, (OUTSIDE, 8099), *[(address, 22) for address in own_addresses()])
    assert "connected" not in seen.values()
    assert (await sandbox.exec("echo fine")).output == b"fine\n"


async def test_the_stack_ends_with_its_sandbox_and_belongs_to_its_user(
    settings: SandboxSettings, project_id: UUID
) -> None:
    provider = Bubblewrap(settings)
    await provider.open(project_id)
    place = places.of(provider.root, project_id)
    stack = stack_of(provider, project_id)
    assert os.stat(f"/proc/{stack}").st_uid == place.workspace.stat().st_uid
    os.kill(place.monitor() or 0, signal.SIGKILL)
    await eventually(lambda: not is_running(stack))


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return b"slirp4netns" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.parametrize("program", ["/nowhere/slirp4netns", "/bin/false"])
async def test_a_network_that_cannot_be_given_is_refused_and_nothing_runs(
    settings: SandboxSettings, project_id: UUID, program: str
) -> None:
    provider = Bubblewrap(settings.model_copy(update={"slirp": program}))
    with pytest.raises(SandboxUnavailable, match="No sandbox"):
        await provider.open(project_id)
    assert places.of(provider.root, project_id).monitor() is None


@pytest.mark.parametrize(
    ("operator", "allowed", "wish", "open_"),
    [
        (False, False, None, False),
        (False, False, True, False),
        (False, True, True, True),
        (True, False, None, True),
        (True, False, False, False),
        (True, True, True, True),
    ],
)
def test_a_project_may_close_its_network_and_open_it_where_the_operator_allows(
    settings: SandboxSettings, operator: bool, allowed: bool, wish: bool | None, open_: bool
) -> None:
    given = settings.model_copy(update={"network": operator, "network_allowed": allowed})
    assert spec_for(given, wish).network is open_


async def test_what_a_project_wishes_holds_from_the_next_start_on(settings: SandboxSettings) -> None:
    wishes: dict[UUID, bool] = {}

    async def wish(project_id: UUID) -> bool | None:
        return wishes.get(project_id)

    project_id = uuid4()
    given = settings.model_copy(update={"network": False, "network_allowed": True})
    provider = Bubblewrap(given, wish)
    sandbox = await provider.open(project_id)
    wishes[project_id] = True
    assert b"tap0" not in (await sandbox.exec("cat /proc/net/dev")).output
    await provider.stop(project_id)
    assert b"tap0" in (await sandbox.exec("cat /proc/net/dev")).output


if os.geteuid() == 0:  # a link to another network namespace is root's to make

    async def test_a_public_address_is_reached_and_this_machines_own_public_address_is_not(
        outside: str, open_sandbox: Sandbox
    ) -> None:
        with listening(OWN) as listener:
            port = listener.getsockname()[1]
            seen = await reached(open_sandbox, (outside, 8099), (OWN, port))
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert seen[f"plain/{outside}"] == "connected"
        assert seen[f"plain/{OWN}"] == "No route to host"
        assert {seen[name] for name in seen if name.endswith(f"/{OWN}")}.isdisjoint({"connected"})
        said = await open_sandbox.exec(f"timeout 5 head -c 18 < /dev/tcp/{outside}/8099")
        assert said.output == b"hello from outside"

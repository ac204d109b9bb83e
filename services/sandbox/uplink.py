"""A sandbox's way to the internet: prepares its network namespace, then becomes slirp4netns, its network stack.

A process of its own, started by the monitor; only the standard library. What is inside reaches public addresses and
the resolver, and nothing else: two layers see to that, and no process inside has the rights to change either.
- The kernel's routes refuse private, special and this machine's own addresses.
- The interface passes no frame but to the gateway and the resolver, whatever route a socket asks for.
"""

import ctypes
import fcntl
import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

INTERFACE = "tap0"
TUN = "/dev/net/tun"
ADDRESS, GATEWAY, RESOLVER = "10.0.2.100", "10.0.2.2", "10.0.2.3"  # slirp4netns's own
MTU = 65520
# https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast
REFUSED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
NS_GET_USERNS = 0xB701
TUNSETIFF, TUNSETPERSIST, TUNSETTXFILTER = 0x400454CA, 0x400454CB, 0x400454D1
IFF_UP, IFF_TAP, IFF_NO_PI = 0x1, 0x2, 0x1000
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH = 16, 20, 24, 28
REQUEST, ACKNOWLEDGE, CREATE = 0x1, 0x4, 0x400
IFLA_MTU, IFA_LOCAL, NDA_DST, NDA_LLADDR, NUD_PERMANENT = 4, 2, 1, 2, 0x80
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
TABLE_MAIN, BY_BOOT, UNIVERSE, UNICAST, UNREACHABLE = 254, 3, 0, 1, 7

Config = dict[str, Any]


def main() -> None:
    config: Config = json.loads(sys.argv[1])
    try:
        namespace = os.open(f"/proc/{config['pid']}/ns/net", os.O_RDONLY)
        owner = fcntl.ioctl(namespace, NS_GET_USERNS)
        inside(namespace, owner)
        become(config, namespace, owner)
    except OSError as error:
        os.write(2, f"no network: {error}\n".encode())
    os._exit(1)


def inside(namespace: int, owner: int) -> None:
    """Prepare the namespace, in a fork, which cannot come back from it. Raises: OSError."""
    own = sorted(set(own_addresses()))
    process = os.fork()
    if process == 0:
        try:
            if os.geteuid():
                enter(owner, CLONE_NEWUSER)
            enter(namespace, CLONE_NEWNET)
            prepare(own)
            os._exit(0)
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        os._exit(1)
    if os.waitpid(process, 0)[1]:
        raise OSError("its network namespace could not be prepared")


def prepare(own: list[str]) -> None:
    """Refuse first, open last."""
    make_tap()
    index = socket.if_nametoindex(INTERFACE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        for network in (*REFUSED, *(f"{address}/32" for address in own)):
            ask(netlink, RTM_NEWROUTE, route(network, UNREACHABLE))
        up = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, IFF_UP, IFF_UP)
        ask(netlink, RTM_NEWLINK, up + attribute(IFLA_MTU, struct.pack("=I", MTU)))
        address = struct.pack("=BBBBI", socket.AF_INET, 24, 0, UNIVERSE, index)
        ask(netlink, RTM_NEWADDR, address + attribute(IFA_LOCAL, socket.inet_aton(ADDRESS)))
        for known in (GATEWAY, RESOLVER):
            ask(netlink, RTM_NEWNEIGH, neighbour(known, index))
        ask(netlink, RTM_NEWROUTE, route("0.0.0.0/0", UNICAST, gateway=GATEWAY, index=index))


def make_tap() -> None:
    """An interface that waits for its slirp4netns. Its filter lets frames out to two addresses, none of them shared."""
    tun = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("=16sH22x", INTERFACE.encode(), IFF_TAP | IFF_NO_PI))
    fcntl.ioctl(tun, TUNSETTXFILTER, struct.pack("=HH", 0, 2) + hardware(GATEWAY) + hardware(RESOLVER))
    fcntl.ioctl(tun, TUNSETPERSIST, 1)
    os.close(tun)


def hardware(address: str) -> bytes:
    """The Ethernet address that slirp gives to its own (`special_ethaddr` in libslirp)."""
    return b"\x52\x55" + socket.inet_aton(address)


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def route(network: str, kind: int, *, gateway: str = "", index: int = 0) -> bytes:
    address, _, length = network.partition("/")
    made = struct.pack("=BBBBBBBBI", socket.AF_INET, int(length), 0, 0, TABLE_MAIN, BY_BOOT, UNIVERSE, kind, 0)
    made += attribute(RTA_DST, socket.inet_aton(address)) if int(length) else b""
    if gateway:
        made += attribute(RTA_GATEWAY, socket.inet_aton(gateway)) + attribute(RTA_OIF, struct.pack("=I", index))
    return made


def neighbour(address: str, index: int) -> bytes:
    made = struct.pack("=BxxxiHBB", socket.AF_INET, index, NUD_PERMANENT, 0, 0)
    return made + attribute(NDA_DST, socket.inet_aton(address)) + attribute(NDA_LLADDR, hardware(address))


def ask(netlink: socket.socket, kind: int, content: bytes) -> None:
    """Raises: OSError when the kernel refuses."""
    header = struct.pack("=IHHII", 16 + len(content), kind, REQUEST | ACKNOWLEDGE | CREATE, 1, 0)
    netlink.send(header + content)
    number = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if number:
        raise OSError(number, f"netlink request {kind}: {os.strerror(number)}")


def own_addresses() -> Iterator[str]:
    """Every IPv4 address of this machine."""
    with open("/proc/net/fib_trie") as file:
        last = ""
        for line in file:
            if "|-- " in line:
                last = line.split()[-1]
            elif line.split()[:3] == ["/32", "host", "LOCAL"]:
                yield last


def become(config: Config, namespace: int, owner: int) -> None:
    """slirp4netns, as the project's own user when this is root. Raises: OSError."""
    program = os.open(config["slirp"], os.O_RDONLY | os.O_CLOEXEC)
    variables = {"PATH": "/usr/bin:/bin"}
    if config["libraries"]:  # by descriptor: the user need not reach what is above
        libraries = inherited(os.open(config["libraries"], os.O_RDONLY | os.O_DIRECTORY))
        variables["LD_LIBRARY_PATH"] = f"/proc/self/fd/{libraries}"
    if config["uid"]:
        reachable_tun()
        os.setgroups([])
        os.setgid(config["uid"])
        os.setuid(config["uid"])
    arguments = ["slirp4netns", "--disable-host-loopback", "--enable-seccomp", f"--mtu={MTU}"]
    arguments += [f"--ready-fd={config['ready']}", f"--exit-fd={config['exit']}"]
    arguments += ["--netns-type=path", f"--userns-path=/proc/self/fd/{inherited(owner)}"]
    os.execve(program, [*arguments, f"/proc/self/fd/{inherited(namespace)}", INTERFACE], variables)  # noqa: S606 - our own arguments


def reachable_tun() -> None:
    """Where only root may open the device of interfaces: one that the project's user may open, seen here only."""
    if stat.S_IMODE(os.stat(TUN).st_mode) & 0o006 == 0o006:
        return
    check(libc.unshare(CLONE_NEWNS), "unshare")
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
    device = os.stat(TUN).st_rdev
    check(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None), "mount /mnt")
    os.mknod("/mnt/tun", stat.S_IFCHR | 0o600, device)
    os.chmod("/mnt/tun", 0o666)  # noqa: S103 - as the device is wherever udev makes it
    check(libc.mount(b"/mnt/tun", TUN.encode(), None, MS_BIND, None), f"mount {TUN}")


def enter(namespace: int, kind: int) -> None:
    check(libc.setns(namespace, kind), "setns")


def check(came: int, what: str) -> None:
    if came:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def inherited(descriptor: int) -> int:
    with suppress(OSError):
        os.set_inheritable(descriptor, True)
    return descriptor


libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    main()

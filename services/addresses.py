"""Which IP addresses belong to the public internet. Pure; from IANA's special-purpose address registries."""

from enum import Enum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address


class Reach(Enum):
    PUBLIC = "public"
    PRIVATE = "private"
    """Somebody's own network or this machine: reached only where an operator says so."""
    NEVER = "never"
    """Metadata services, link-local, multicast, reserved, documentation, tunnels: no server of anybody's choice."""


NEVER = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "100.100.100.200/32",  # metadata of Alibaba Cloud, inside 100.64.0.0/10
            "168.63.129.16/32",  # Azure's host, at a public address that only virtual machines reach
            "169.254.0.0/16",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "2001::/23",  # Teredo, ORCHID, benchmarking
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address in disguise
            "3fff::/20",
            "fd00:ec2::/32",  # metadata of Amazon, inside fc00::/7
            "fd20:ce::/32",  # metadata of Google, inside fc00::/7
        ),
    )
)
PRIVATE = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"),
    )
)
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")


def reach(address: Address) -> Reach:
    """How far an address reaches. What IANA has not given out counts as NEVER."""
    if isinstance(address, IPv6Address) and address in NAT64:
        inner = reach(IPv4Address(int(address) & 0xFFFFFFFF))
        return Reach.PUBLIC if inner is Reach.PUBLIC else Reach.NEVER
    if any(address in network for network in NEVER):
        return Reach.NEVER
    if any(address in network for network in PRIVATE):
        return Reach.PRIVATE
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return Reach.NEVER
    return Reach.PUBLIC


def parse(text: str) -> Address | None:
    """The address that `text` is, in its one canonical form and without a zone; None for anything else."""
    if "%" in text:
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None

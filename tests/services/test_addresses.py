from ipaddress import ip_address

import pytest

from services.addresses import Reach, parse, reach

PUBLIC = (
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.0.1",
    "2606:4700::1111",
    "64:ff9b::808:808",
)
PRIVATE = ("127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd12::1")
NEVER = (
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "4000::1",
    "fd00:ec2::254",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, Reach.PUBLIC) for text in PUBLIC),
        *((text, Reach.PRIVATE) for text in PRIVATE),
        *((text, Reach.NEVER) for text in NEVER),
    ],
)
def test_every_address_has_its_reach(text: str, expected: Reach) -> None:
    assert reach(ip_address(text)) is expected


@pytest.mark.parametrize("text", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "fe80::1%eth0", "example.com", ""])
def test_only_the_canonical_form_is_an_address(text: str) -> None:
    assert parse(text) is None

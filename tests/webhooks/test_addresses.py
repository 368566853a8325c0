"""Only addresses of the public internet are called."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.webhooks.destinations import is_loopback, is_public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "100.128.0.1",
    "172.32.0.1",
    "192.169.0.1",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200e",
]

LOCAL = [
    "0.0.0.0",  # noqa: S104  # nothing is bound here
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.1.2.3",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:a00:1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
]

# What is no address to us, whatever a resolver may take it for.
NO_ADDRESS = [
    "",
    "localhost",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "1.1.1.1.",
    "[::1]",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_called(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", [*LOCAL, *NO_ADDRESS])
def test_no_other_address_may(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_what_python_knows_to_be_local_is_never_public(address: IPv4Address | IPv6Address) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast


# Compatible, mapped, NAT64, 6to4, ISATAP under a network's own prefix (RFC 5214).
INSIDE = [
    ("::", 0),
    ("::ffff:0:0", 0),
    ("64:ff9b::", 0),
    ("2002::", 80),
    ("2a00:1450::5efe:0:0", 0),
    ("2a00:1450::200:5efe:0:0", 0),
]


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_one_is_never_public(address: IPv4Address) -> None:
    number = int(address)
    for prefix, shift in INSIDE:
        inside = IPv6Address(int(IPv6Address(prefix)) + (number << shift))
        assert not is_public(str(inside))


@pytest.mark.parametrize("address", [*PUBLIC, *LOCAL, *NO_ADDRESS])
def test_this_machine_is_known_by_its_own_addresses_only(address: str) -> None:
    assert is_loopback(address) == (address in {"127.0.0.1", "127.1.2.3", "::1"})


@given(st.ip_addresses())
def test_no_address_is_both(address: IPv4Address | IPv6Address) -> None:
    assert not (is_public(str(address)) and is_loopback(str(address)))
    assert is_loopback(str(address)) == (
        address.is_loopback and address == ip_address(str(address))
    )

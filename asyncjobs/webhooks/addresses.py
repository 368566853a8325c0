"""Which addresses of the network may be called: those of the public internet, and no others.

A table of our own and not `ipaddress.is_global`, whose answer differs between releases of Python
and does not see an IPv4 address inside an IPv6 one.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# IANA's registry of special-purpose IPv4 addresses (RFC 6890), multicast (RFC 5771), and what is
# reserved. The last one is public by its number, but Azure's machines reach their host by it.
_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "168.63.129.16/32",
        ),
    )
)

# All of IPv6 that is public (RFC 4291, section 2.4), without the special purposes in it: IETF's own
# with Teredo, documentation, 6to4. Outside of it are IPv4-mapped addresses and NAT64, which lead to
# any IPv4 address, and all that is local.
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))

_LOOPBACK_4 = IPv4Network("127.0.0.0/8")
_LOOPBACK_6 = IPv6Address("::1")


def is_public(text: str) -> bool:
    """Tell whether an address, as a resolver writes it, is one of the public internet."""
    address = _parsed(text)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address is None or address.scope_id is not None or address not in _PUBLIC_6:
        return False
    return not _is_isatap(address) and not any(address in network for network in _NOT_PUBLIC_6)


def is_loopback(text: str) -> bool:
    """Tell whether an address is this machine's own, written as such."""
    address = _parsed(text)
    if isinstance(address, IPv4Address):
        return address in _LOOPBACK_4
    return address == _LOOPBACK_6


def _is_isatap(address: IPv6Address) -> bool:
    """Tell whether an IPv4 address is the rest of it, below any prefix (RFC 5214, section 6.1)."""
    return (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None

"""Decides which URLs and network addresses webhooks may call: functions of text, without I/O.

Only addresses of the public internet may be called. The table of them is our own:
`ipaddress.is_global` differs between releases of Python, and does not detect an IPv4 address inside
an IPv6 one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from asyncjobs.errors import ConfigurationError, InvalidCallback

_MAX_URL_LENGTH = 2048

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)+{_LABEL}")

# RFC 3986, appendix A, restricted to the necessary parts: anything that another parser could
# understand differently (users, fragments, brackets, backslashes, control characters, other
# alphabets) does not match.
_PCHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2}"
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[::1\])(?::(?P<port>[0-9]{1,5}))?"
    rf"(?P<path>/(?:{_PCHAR})*)?(?P<query>\?(?:{_PCHAR}|\?)*)?",
    re.IGNORECASE | re.ASCII,
)

# The URL standard treats a host as an IPv4 address if its last label is a number, in any base.
_IPV4_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")

#: The only names of this machine that may be called, and only with `loopback`.
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})

# IANA's registry of special-purpose IPv4 addresses (RFC 6890), multicast (RFC 5771), and reserved
# addresses. The last one has a public number, but on Azure it is the host of the virtual machine.
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

# All public IPv6 addresses (RFC 4291, section 2.4), from which the special purposes below are
# excluded: IETF's own with Teredo, documentation, 6to4. Outside of it are IPv4-mapped addresses and
# NAT64, which lead to any IPv4 address, and all local addresses.
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))

_LOOPBACK_4 = IPv4Network("127.0.0.0/8")
_LOOPBACK_6 = IPv6Address("::1")


@dataclass(frozen=True, slots=True)
class Destination:
    """A parsed callback URL whose host is not resolved yet; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


def parse_destination(url: str) -> Destination:
    """Parse a callback URL; raise `InvalidCallback` if its text alone rules it out."""
    if len(url) > _MAX_URL_LENGTH:
        raise InvalidCallback(f"it has more than {_MAX_URL_LENGTH} characters")
    found = _URL.fullmatch(url)
    if found is None:
        raise InvalidCallback("it is not of the form https://host/path, in ASCII")
    scheme, host = found["scheme"].lower(), found["host"].lower().strip("[]")
    if host not in THIS_MACHINE and not is_host_name(host):
        raise InvalidCallback("its host is not a fully qualified name")
    port = int(found["port"] or {"http": 80, "https": 443}[scheme])
    return Destination(scheme, host, port, f"{found['path'] or '/'}{found['query'] or ''}")


def is_host_name(host: str) -> bool:
    """Return whether a host is a full name in lower case and not an address in any notation."""
    labels = host.split(".")
    return (
        len(host) <= 253
        and _HOST_NAME.fullmatch(host) is not None
        and _IPV4_LABEL.fullmatch(labels[-1]) is None
    )


def check_receiver(pattern: str, *, loopback: bool) -> None:
    """Raise `ConfigurationError` unless the pattern is a host name or `*.` and a name."""
    here = loopback and pattern in THIS_MACHINE
    if not here and not is_host_name(pattern.removeprefix("*.")):
        raise ConfigurationError(
            f"A receiver of webhooks must be a host in lower case, such as hooks.example.com, or a "
            f"wildcard, such as *.example.com, got {pattern!r}."
        )


def closest_receiver(host: str, patterns: Iterable[str]) -> str | None:
    """Return the most specific pattern that matches a host, or None."""
    matching = [pattern for pattern in patterns if _matches(pattern, host)]
    return max(matching, key=lambda it: (not it.startswith("*"), len(it)), default=None)


def _matches(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern


def is_public(text: str) -> bool:
    """Return whether an address, as a resolver writes it, belongs to the public internet."""
    address = _parse_address(text)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address is None or address.scope_id is not None or address not in _PUBLIC_6:
        return False
    return not _is_isatap(address) and not any(address in network for network in _NOT_PUBLIC_6)


def is_loopback(text: str) -> bool:
    """Return whether an address is a loopback address, written as such."""
    address = _parse_address(text)
    if isinstance(address, IPv4Address):
        return address in _LOOPBACK_4
    return address == _LOOPBACK_6


def _is_isatap(address: IPv6Address) -> bool:
    """Return whether the address embeds an IPv4 address by ISATAP (RFC 5214, section 6.1)."""
    return (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None

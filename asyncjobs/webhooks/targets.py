"""Which URLs may be called, as far as their text tells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from asyncjobs.errors import ConfigurationError, InvalidCallback

_LONGEST = 2048

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)+{_LABEL}")

# RFC 3986, appendix A, of which only what is needed: what a parser could understand in another way
# (users, fragments, brackets, backslashes, control characters, other alphabets) does not match.
_PCHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2}"
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[::1\])(?::(?P<port>[0-9]{1,5}))?"
    rf"(?P<path>/(?:{_PCHAR})*)?(?P<query>\?(?:{_PCHAR}|\?)*)?",
    re.IGNORECASE | re.ASCII,
)

# What the URL standard takes for an IPv4 address: its last label is a number, of any base.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

#: This machine, by the only names it may be called by; never without `loopback`.
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes, before any name is resolved; `path` is what HTTP calls the target."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


def parse_target(url: str) -> Target:
    """Read a URL that could be called at all; raise `InvalidCallback`."""
    if len(url) > _LONGEST:
        raise InvalidCallback(f"it has more than {_LONGEST} characters")
    found = _URL.fullmatch(url)
    if found is None:
        raise InvalidCallback("it is not of the form https://host/path, in ASCII")
    scheme, host = found["scheme"].lower(), found["host"].lower().strip("[]")
    if host not in THIS_MACHINE and not is_name(host):
        raise InvalidCallback("its host is not a full name")
    port = int(found["port"] or {"http": 80, "https": 443}[scheme])
    return Target(scheme, host, port, f"{found['path'] or '/'}{found['query'] or ''}")


def is_name(host: str) -> bool:
    """Tell whether a host is a full name in lower case, and no address in any notation."""
    labels = host.split(".")
    return (
        len(host) <= 253
        and _NAME.fullmatch(host) is not None
        and _NUMBER.fullmatch(labels[-1]) is None
    )


def check_pattern(pattern: str, *, loopback: bool) -> None:
    """Raise `ConfigurationError` for what is neither a host's name nor `*.` and a name."""
    here = loopback and pattern in THIS_MACHINE
    if not here and not is_name(pattern.removeprefix("*.")):
        raise ConfigurationError(
            f"A receiver of webhooks is a host in lower case, such as hooks.example.com, or all "
            f"below a name, such as *.example.com; got {pattern!r}."
        )


def closest(host: str, patterns: Iterable[str]) -> str | None:
    """Return the pattern that means a host, the longest of several; None where none does."""
    fitting = [one for one in patterns if _means(one, host)]
    return max(fitting, key=lambda one: (not one.startswith("*"), len(one)), default=None)


def _means(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern

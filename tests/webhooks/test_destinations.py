"""The URLs and addresses that webhooks may call."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.errors import ConfigurationError, InvalidCallback
from asyncjobs.webhooks.destinations import (
    Destination,
    check_receiver,
    closest_receiver,
    is_host_name,
    is_loopback,
    is_public,
    parse_destination,
)


def words(text: str) -> list[str]:
    return text.split()


# addresses

PUBLIC = words("""
1.1.1.1 8.8.8.8 93.184.215.14 100.128.0.1 172.32.0.1 192.169.0.1
2001:4860:4860::8888 2606:4700:4700::1111 2a00:1450:4001:80b::200e
""")

LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1"]

LOCAL = words("""
0.0.0.0 10.0.0.1 100.64.0.1 100.127.255.255 168.63.129.16 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.7 203.0.113.9
224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:a00:1 ::ffff:0:127.0.0.1 64:ff9b::10.0.0.1
64:ff9b::8.8.8.8 64:ff9b:1::1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1
2002:7f00:1:: 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0
2606:4700:4700::1111%eth0 fec0::1 ff02::1
""")

# Not addresses here, even if some resolvers accept them.
NO_ADDRESS = ["", *words("localhost 2130706433 0x7f000001 0177.0.0.1 127.1 1.1.1.1. [::1]")]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public_and_not_loopback(address: str) -> None:
    assert (is_public(address), is_loopback(address)) == (True, False)


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_addresses_are_loopback_and_not_public(address: str) -> None:
    assert (is_public(address), is_loopback(address)) == (False, True)


@pytest.mark.parametrize("address", [*LOCAL, *NO_ADDRESS])
def test_other_addresses_are_neither_public_nor_loopback(address: str) -> None:
    assert (is_public(address), is_loopback(address)) == (False, False)


@given(st.ip_addresses())
def test_addresses_that_python_knows_to_be_local_are_never_public(
    address: IPv4Address | IPv6Address,
) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
    loopback = address.is_loopback and address == ip_address(str(address))
    assert is_loopback(str(address)) == loopback
    assert not (loopback and is_public(str(address)))


# Compatible, mapped, NAT64, 6to4, ISATAP under a network's own prefix (RFC 5214).
EMBEDDING_PREFIXES = [
    ("::", 0),
    ("::ffff:0:0", 0),
    ("64:ff9b::", 0),
    ("2002::", 80),
    ("2a00:1450::5efe:0:0", 0),
    ("2a00:1450::200:5efe:0:0", 0),
]


@given(st.ip_addresses(v=4))
def test_ipv6_addresses_that_embed_an_ipv4_address_are_never_public(address: IPv4Address) -> None:
    for prefix, shift in EMBEDDING_PREFIXES:
        embedding = IPv6Address(int(IPv6Address(prefix)) + (int(address) << shift))
        assert not is_public(str(embedding))


# URLs


@pytest.mark.parametrize(
    ("url", "destination"),
    [
        ("https://a.example.com", Destination("https", "a.example.com", 443, "/")),
        ("HTTPS://A.Example.COM/x", Destination("https", "a.example.com", 443, "/x")),
        ("https://a.example.com:8443/x?y=z", Destination("https", "a.example.com", 8443, "/x?y=z")),
        ("https://a.example.com?y=/?", Destination("https", "a.example.com", 443, "/?y=/?")),
        ("http://a.example.com:80/%C3%A9", Destination("http", "a.example.com", 80, "/%C3%A9")),
        ("https://xn--bcher-kva.example/", Destination("https", "xn--bcher-kva.example", 443, "/")),
        ("http://[::1]:8000/", Destination("http", "::1", 8000, "/")),
        ("http://localhost:8000/", Destination("http", "localhost", 8000, "/")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_url_is_parsed_into_scheme_host_port_and_path(url: str, destination: Destination) -> None:
    assert parse_destination(url) == destination


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://a.example.com/", "a.example.com"),
        ("https://a.example.com:443/", "a.example.com"),
        ("https://a.example.com:444/", "a.example.com:444"),
        ("https://a.example.com:80/", "a.example.com:80"),
        ("http://a.example.com:80/", "a.example.com"),
        ("http://a.example.com:81/", "a.example.com:81"),
        ("http://a.example.com:443/", "a.example.com:443"),
        ("http://[::1]/", "[::1]"),
        ("http://[::1]:8000/", "[::1]:8000"),
    ],
)
def test_the_authority_omits_the_default_port_of_the_scheme(url: str, authority: str) -> None:
    assert parse_destination(url).authority == authority


def long_url(length: int) -> str:
    beginning = "https://a.example.com/"
    return beginning + "x" * (length - len(beginning))


def long_host(length: int) -> str:
    """Make a host of 63-character labels, the longest allowed, after a shorter first one."""
    last = ".".join(["x" * 63] * 3)
    return "x" * (length - len(last) - 1) + "." + last


def test_the_longest_url_is_accepted_and_a_longer_one_refused() -> None:
    assert len(parse_destination(long_url(2048)).path) == 2048 - len("https://a.example.com")
    with pytest.raises(InvalidCallback, match="more than 2048 characters"):
        parse_destination(long_url(2049))


def test_the_longest_host_is_accepted_and_a_longer_one_refused() -> None:
    """RFC 1035, section 2.3.4: 255 octets including the lengths of labels, so 253 characters."""
    host = long_host(253)
    assert parse_destination(f"https://{host}/").host == host
    check_receiver(host, loopback=False)
    with pytest.raises(InvalidCallback, match="fully qualified name"):
        parse_destination(f"https://{long_host(254)}/")
    with pytest.raises(ConfigurationError):
        check_receiver(long_host(254), loopback=False)


def test_the_longest_label_is_accepted_and_a_longer_one_refused() -> None:
    assert is_host_name("x" * 63 + ".example.com")
    assert not is_host_name("x" * 64 + ".example.com")


REFUSED_HOSTS = words("""
user@a.example.com user:pass@a.example.com a.example.com@127.0.0.1 a.example.com:443@evil.example
a.example.com\\@evil.example a.example.com#@evil.example a.example.com: a.example.com:443443
a.example.com:\uff14\uff14\uff13 a.example.com. .example.com a..example.com -a.example.com
a%2eexample.com ⓐ.example.com a。example.com 1\uff127.0.0.1 \u212a.example.com intranet
127.0.0.2 8.8.8.8 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 127.1 127.0.1 0 a.example.0x10
a.example.0x [::ffff:127.0.0.1] [0:0:0:0:0:0:0:1] [fe80::1%25eth0] [64:ff9b::7f00:1] ::1
""")

REFUSED = [
    *(f"https://{host}/" for host in REFUSED_HOSTS),
    *("", "a.example.com", "//a.example.com/", "ftp://a.example.com/", "file:///etc/passwd"),
    *("https:a.example.com", "https:/a.example.com", "https:///a.example.com", "https://"),
    *("https://a.example.com/#top", "https://a.example.com /", " https://a.example.com/"),
    *("https://a.example.com/\r\nX: y", "https://a.example.com/ x", "https://a.example.com/\x00"),
    *("https://a.example.com/é", "https://a.example.com/%zz"),
    "https://a.example.com/" + "x" * 2048,
    "https://" + "a" * 64 + ".example.com/",
    "https://" + "a." * 130 + "com/",
]


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:40])
def test_ambiguous_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidCallback):
        parse_destination(url)


URL_PARTS = ["https://", "http://", "a.example.com", "127.0.0.1", *"@:/\\?#[]"]
URLISH = st.lists(
    st.sampled_from(URL_PARTS) | st.text(string.printable, max_size=3) | st.text(max_size=2)
).map("".join)


@given(URLISH | URLISH.map(lambda rest: "https://a.example.com" + rest))
def test_accepted_urls_mean_the_same_to_other_parsers(url: str) -> None:
    try:
        destination = parse_destination(url)
    except InvalidCallback:
        return
    other = urlsplit(url)
    assert (other.scheme, other.hostname) == (destination.scheme, destination.host)
    assert other.port in (None, destination.port)
    assert (other.username, other.password, other.fragment) == (None, None, "")
    path = f"{other.path or '/'}{'?' if '?' in url else ''}{other.query}"
    assert path == destination.path
    assert destination.path.isascii()
    assert not set(destination.path) & set(string.whitespace)


@given(st.ip_addresses().map(str))
def test_addresses_are_not_host_names(address: str) -> None:
    assert not is_host_name(address)


# receivers

PATTERNS = ["a.example.com", "*.example.com", "*.b.example.com", "example.org"]


@pytest.mark.parametrize(
    ("host", "pattern"),
    [
        ("a.example.com", "a.example.com"),
        ("c.example.com", "*.example.com"),
        ("c.d.example.com", "*.example.com"),
        ("c.b.example.com", "*.b.example.com"),
        ("b.example.com", "*.example.com"),
        ("example.org", "example.org"),
        *((host, None) for host in ("example.com", "evilexample.com", "a.example.com.evil.org")),
        ("a.example.org", None),
    ],
)
def test_the_most_specific_receiver_applies(host: str, pattern: str | None) -> None:
    assert closest_receiver(host, PATTERNS) == pattern


@pytest.mark.parametrize(
    "pattern", ["*", "*.com", "com", "A.example.com", "a.*.com", "", "1.2.3.4"]
)
def test_malformed_receivers_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a host"):
        check_receiver(pattern, loopback=False)


def test_loopback_receivers_need_the_loopback_option() -> None:
    for name in ("localhost", "127.0.0.1", "::1"):
        check_receiver(name, loopback=True)
        with pytest.raises(ConfigurationError):
            check_receiver(name, loopback=False)

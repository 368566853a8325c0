"""Which URLs may be called, as far as their text tells."""

from __future__ import annotations

import string
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
    parse_destination,
)


@pytest.mark.parametrize(
    ("url", "target"),
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
def test_a_url_is_read_as_it_stands(url: str, target: Destination) -> None:
    assert parse_destination(url) == target


REFUSED = [
    "",
    "a.example.com",
    "//a.example.com/",
    "ftp://a.example.com/",
    "file:///etc/passwd",
    "gopher://a.example.com/",
    "https:a.example.com",
    "https:/a.example.com",
    "https:///a.example.com",
    "https://",
    "https://user@a.example.com/",
    "https://user:pass@a.example.com/",
    "https://a.example.com@127.0.0.1/",
    "https://a.example.com:443@evil.example/",
    "https://a.example.com\\@evil.example/",
    "https://a.example.com#@evil.example/",
    "https://a.example.com/#top",
    "https://a.example.com:/",
    "https://a.example.com:443443/",
    "https://a.example.com:\uff14\uff14\uff13/",
    "https://a.example.com /",
    " https://a.example.com/",
    "https://a.example.com/\r\nX: y",
    "https://a.example.com/ x",
    "https://a.example.com/\x00",
    "https://a.example.com/é",
    "https://a.example.com/%zz",
    "https://a.example.com./",
    "https://.example.com/",
    "https://a..example.com/",
    "https://-a.example.com/",
    "https://a%2eexample.com/",
    "https://ⓐ.example.com/",
    "https://a。example.com/",
    "https://1\uff127.0.0.1/",
    "https://\u212a.example.com/",
    "https://intranet/",
    "https://127.0.0.2/",
    "https://8.8.8.8/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0/",
    "https://a.example.0x10/",
    "https://a.example.0x/",
    "https://[::ffff:127.0.0.1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[fe80::1%25eth0]/",
    "https://[64:ff9b::7f00:1]/",
    "https://::1/",
    "https://a.example.com/" + "x" * 2048,
    "https://" + "a" * 64 + ".example.com/",
    "https://" + "a." * 130 + "com/",
]


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:40])
def test_what_could_mean_something_else_is_refused(url: str) -> None:
    with pytest.raises(InvalidCallback):
        parse_destination(url)


URLISH = st.lists(
    st.sampled_from(
        [
            "https://",
            "http://",
            "a.example.com",
            "127.0.0.1",
            "@",
            ":",
            "/",
            "\\",
            "?",
            "#",
            "[",
            "]",
        ]
    )
    | st.text(string.printable, max_size=3)
    | st.text(max_size=2)
).map("".join)


@given(URLISH | URLISH.map(lambda rest: "https://a.example.com" + rest))
def test_what_is_read_means_the_same_to_other_parsers(url: str) -> None:
    try:
        target = parse_destination(url)
    except InvalidCallback:
        return
    other = urlsplit(url)
    assert (other.scheme, other.hostname) == (target.scheme, target.host)
    assert other.port in (None, target.port)
    assert (other.username, other.password, other.fragment) == (None, None, "")
    path = f"{other.path or '/'}{'?' if '?' in url else ''}{other.query}"
    assert path == target.path
    assert target.path.isascii()
    assert not set(target.path) & set(string.whitespace)


@given(st.ip_addresses().map(str))
def test_no_address_is_a_name(address: str) -> None:
    assert not is_host_name(address)


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
        ("example.com", None),
        ("evilexample.com", None),
        ("a.example.com.evil.org", None),
        ("a.example.org", None),
    ],
)
def test_the_closest_receiver_counts(host: str, pattern: str | None) -> None:
    assert closest_receiver(host, PATTERNS) == pattern


@pytest.mark.parametrize(
    "pattern", ["*", "*.com", "com", "A.example.com", "a.*.com", "", "1.2.3.4"]
)
def test_what_is_no_host_is_no_receiver(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="is a host"):
        check_receiver(pattern, loopback=False)


def test_this_machine_is_a_receiver_only_where_that_is_wanted() -> None:
    for name in ("localhost", "127.0.0.1", "::1"):
        check_receiver(name, loopback=True)
        with pytest.raises(ConfigurationError):
            check_receiver(name, loopback=False)

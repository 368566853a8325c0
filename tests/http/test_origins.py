"""Pages of other sites change nothing here; whoever is no browser is let through."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.errors import CrossSite
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.security import (
    is_origin,
    origin_of,
    own_origin,
    refuse_cross_site,
    refuse_foreign_socket,
)

# The machine may be busy with other things.


SAFE = ["GET", "HEAD", "OPTIONS", "TRACE"]
UNSAFE = ["POST", "DELETE", "PUT", "PATCH", "PURGE", "post"]
FRIEND = "https://app.example.com"

hosts = st.from_regex(r"[a-z0-9]([a-z0-9\-]{0,8}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True)
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
authorities = st.tuples(st.one_of(hosts, st.just("[::1]")), ports).map("".join)


def sent(method: str = "POST", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, headers={"host": "api.example.com", **named})


def refused(request: Request, *trusted: str) -> bool:
    try:
        refuse_cross_site(request, trusted)
    except CrossSite:
        return True
    return False


@pytest.mark.parametrize("method", SAFE)
@pytest.mark.parametrize("site", ["cross-site", "same-site", "x"])
def test_what_changes_nothing_may_come_from_anywhere(method: str, site: str) -> None:
    assert not refused(sent(method, sec_fetch_site=site, origin="https://evil.example"))


@pytest.mark.parametrize("method", UNSAFE)
def test_whoever_is_no_browser_is_let_through(method: str) -> None:
    assert not refused(sent(method))
    assert not refused(Request(method))


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_servers_own_pages_and_the_users_own_doing_are_let_through(
    method: str, site: str
) -> None:
    # A proxy may have changed the host; what the browser says of the site still stands.
    assert not refused(sent(method, sec_fetch_site=site, origin="https://public.example"))


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "Same-Origin", "nonsense"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "https://api.example.com"])
def test_what_the_browser_says_of_the_site_goes_before_the_origin(
    method: str, site: str, origin: str
) -> None:
    assert refused(sent(method, sec_fetch_site=site, origin=origin))


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://example.com",
        "https://xapi.example.com",
        "https://api.example.com.evil.example",
        "https://api.example.com:8443",
        "https://api.example.com@evil.example",
        "https://evil.example/api.example.com",
        "https://evil.example://api.example.com",
        "null",
        "file://",
        "api.example.com",
        "//api.example.com",
    ],
)
def test_without_a_word_of_the_site_the_origin_must_have_the_servers_host(origin: str) -> None:
    assert refused(sent(origin=origin))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://api.example.com", "api.example.com"),
        ("http://api.example.com", "api.example.com"),  # a proxy that ends TLS
        ("https://API.example.com", "api.EXAMPLE.com"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[2001:DB8::1]", "[2001:db8::1]"),
        ("http://127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_an_older_browser_on_the_servers_own_page_is_let_through(origin: str, host: str) -> None:
    assert not refused(sent(origin=origin, host=host))


@pytest.mark.parametrize("origin", ["null", "nonsense", "https://"])
def test_an_origin_without_a_host_is_refused_by_a_server_without_one(origin: str) -> None:
    assert refused(Request("POST", headers={"origin": origin}))
    assert refused(sent(origin=origin, host=""))


@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
@pytest.mark.parametrize("origin", [FRIEND, "https://APP.example.com"])
def test_pages_of_trusted_origins_are_let_through(site: str | None, origin: str) -> None:
    headers = {} if site is None else {"sec_fetch_site": site}
    assert not refused(sent(origin=origin, **headers), FRIEND)


@pytest.mark.parametrize(
    "origin", ["http://app.example.com", "https://app.example.com:444", "https://b.example.com"]
)
def test_trust_is_in_scheme_host_and_port_as_a_whole(origin: str) -> None:
    assert refused(sent(origin=origin, sec_fetch_site="cross-site"), FRIEND)
    assert refused(sent(origin=origin), FRIEND)


@given(page=authorities, host=authorities, scheme=st.sampled_from(["http", "https"]))
def test_by_the_origin_alone_only_the_very_host_and_port_are_let_through(
    page: str, host: str, scheme: str
) -> None:
    assert refused(sent(origin=f"{scheme}://{page}", host=host)) == (page != host)


@given(origin=st.text(max_size=30), host=st.text(max_size=30), site=st.text(max_size=12))
def test_whatever_is_sent_the_answer_is_yes_or_no(origin: str, host: str, site: str) -> None:
    request = sent(origin=origin, host=host)
    refused(request, FRIEND)
    assert refused(sent(origin=origin, host=host, sec_fetch_site=site), FRIEND) == (
        site not in {"same-origin", "none"} and origin.lower() != FRIEND
    )


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("https://evil.example", "Pages of https://evil.example may"),
        ("https://Evil.example:8443", "Pages of https://Evil.example:8443 may"),
        ("null", "Pages of other sites may"),
        ("<script>alert(1)</script>", "Pages of other sites may"),
        ("https://evil.example/\r\nX: y", "Pages of other sites may"),
    ],
)
def test_a_refusal_names_the_origin_where_it_is_one(origin: str, said: str) -> None:
    with pytest.raises(CrossSite, match=said):
        refuse_cross_site(sent(origin=origin, sec_fetch_site="cross-site"), ())


def test_a_socket_is_refused_to_foreign_pages_though_it_is_opened_by_get() -> None:
    foreign = sent("GET", origin="https://evil.example")
    with pytest.raises(CrossSite):
        refuse_foreign_socket(foreign, ())
    refuse_foreign_socket(foreign, {"https://evil.example"})
    refuse_foreign_socket(sent("GET", origin="https://api.example.com"), ())
    refuse_foreign_socket(sent("GET"), ())


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com",
        "http://localhost:8000",
        "http://[::1]:8000",
        "https://xn--mnchen-3ya.de",
        "http://127.0.0.1",
        "app+custom://host",
    ],
)
def test_an_origin_is_a_scheme_and_a_host_and_perhaps_a_port(text: str) -> None:
    assert is_origin(text)
    MountOptions(origins=(text,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "*",
        "example.com",
        "https://",
        "https://example.com/",
        "https://example.com/app",
        "https://example.com?x",
        "https://user@example.com",
        "https://example.com:",
        "https://example.com:123456",
        "https://[::1",
        "https://a b",
        "HTTPS://example.com",
        "https://example.com\n",
    ],
)
def test_what_is_no_origin_is_refused_when_the_mount_is_made(text: str) -> None:
    assert not is_origin(text)
    with pytest.raises(ValueError, match="An origin is"):
        MountOptions(origins=(text,))


@pytest.mark.parametrize("text", ["https://App.Example.com", "https://APP.EXAMPLE.COM:8443"])
def test_an_origin_that_was_accepted_is_trusted_whatever_its_case(text: str) -> None:
    trusted = Mount(options=MountOptions(origins=(text,))).trusted
    assert not refused(sent(origin=text.lower(), sec_fetch_site="cross-site"), *trusted)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://example.com/api", "https://example.com"),
        ("https://Example.COM:8443/api", "https://example.com:8443"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("https://user:secret@example.com", None),
        ("/api", None),
        ("", None),
        ("mailto:a@example.com", None),
    ],
)
def test_the_origin_of_a_url_is_without_its_path(url: str, origin: str | None) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("scheme", "host", "origin"),
    [
        ("http", "localhost:8000", "http://localhost:8000"),
        ("https", "example.com", "https://example.com"),
        ("ws", "example.com", "http://example.com"),
        ("wss", "[::1]:8000", "https://[::1]:8000"),
        ("http", "", None),
        ("http", "a b", None),
        ("http", "evil.example/path", None),
        ("http", 'x"><script>', None),
        ("http", "user@example.com", None),
        ("http", "example.com\r\n", None),
    ],
)
def test_the_servers_own_origin_is_what_the_client_called_it_if_that_is_a_host(
    scheme: str, host: str, origin: str | None
) -> None:
    assert own_origin(Request("GET", scheme=scheme, headers={"host": host})) == origin
    assert own_origin(Request("GET", scheme=scheme)) is None


@pytest.mark.parametrize(
    ("origin", "host", "ours"),
    [
        ("http://a.example", "a.example:80", True),
        ("https://a.example", "a.example:443", True),
        ("http://a.example", "a.example:443", False),
        ("https://a.example", "a.example:80", False),
        ("http://a.example:8080", "a.example:80", False),
    ],
)
def test_the_usual_port_may_be_spelt_out(origin: str, host: str, ours: bool) -> None:
    request = Request("POST", headers={"origin": origin, "host": host})
    with nullcontext() if ours else pytest.raises(CrossSite):
        refuse_cross_site(request, ())

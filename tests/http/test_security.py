"""Cross-site requests and polls above the rate limit are refused."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from datetime import timedelta
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.core.job import JobId, new_job_id
from asyncjobs.errors import CrossSite, TooManyPolls
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.security import (
    Limiter,
    PollLimit,
    is_origin,
    origin_of,
    own_origin,
    refuse_cross_site,
    refuse_foreign_socket,
)

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
def test_safe_methods_are_allowed_from_any_site(method: str, site: str) -> None:
    assert not refused(sent(method, sec_fetch_site=site, origin="https://evil.example"))


@pytest.mark.parametrize("method", UNSAFE)
def test_clients_that_are_not_browsers_are_allowed(method: str) -> None:
    assert not refused(sent(method))
    assert not refused(Request(method))


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_same_origin_pages_and_user_navigation_are_allowed(method: str, site: str) -> None:
    # A proxy may have changed the host; the browser's own headers still apply.
    assert not refused(sent(method, sec_fetch_site=site, origin="https://public.example"))


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "Same-Origin", "nonsense"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "https://api.example.com"])
def test_sec_fetch_site_takes_precedence_over_the_origin(
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
def test_without_sec_fetch_site_the_origin_must_have_the_servers_host(origin: str) -> None:
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
def test_without_sec_fetch_site_the_servers_own_pages_are_allowed(origin: str, host: str) -> None:
    assert not refused(sent(origin=origin, host=host))


@pytest.mark.parametrize("origin", ["null", "nonsense", "https://"])
def test_an_origin_without_a_host_is_refused_if_the_request_has_no_host(origin: str) -> None:
    assert refused(Request("POST", headers={"origin": origin}))
    assert refused(sent(origin=origin, host=""))


@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
@pytest.mark.parametrize("origin", [FRIEND, "https://APP.example.com"])
def test_pages_of_trusted_origins_are_allowed(site: str | None, origin: str) -> None:
    headers = {} if site is None else {"sec_fetch_site": site}
    assert not refused(sent(origin=origin, **headers), FRIEND)


@pytest.mark.parametrize(
    "origin", ["http://app.example.com", "https://app.example.com:444", "https://b.example.com"]
)
def test_a_trusted_origin_is_compared_by_scheme_host_and_port(origin: str) -> None:
    assert refused(sent(origin=origin, sec_fetch_site="cross-site"), FRIEND)
    assert refused(sent(origin=origin), FRIEND)


@given(page=authorities, host=authorities, scheme=st.sampled_from(["http", "https"]))
def test_with_an_origin_alone_only_the_same_host_and_port_are_allowed(
    page: str, host: str, scheme: str
) -> None:
    assert refused(sent(origin=f"{scheme}://{page}", host=host)) == (page != host)


@given(origin=st.text(max_size=30), host=st.text(max_size=30), site=st.text(max_size=12))
def test_any_header_is_allowed_or_refused(origin: str, host: str, site: str) -> None:
    request = sent(origin=origin, host=host)
    refused(request, FRIEND)
    assert refused(sent(origin=origin, host=host, sec_fetch_site=site), FRIEND) == (
        site not in {"same-origin", "none"} and origin.lower() != FRIEND
    )


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("https://evil.example", "pages of https://evil.example are not allowed"),
        ("https://Evil.example:8443", "pages of https://Evil.example:8443 are not allowed"),
        ("null", "pages of other sites are not allowed"),
        ("<script>alert(1)</script>", "pages of other sites are not allowed"),
        ("https://evil.example/\r\nX: y", "pages of other sites are not allowed"),
    ],
)
def test_a_refusal_names_the_origin_if_it_is_valid(origin: str, said: str) -> None:
    with pytest.raises(CrossSite, match=said):
        refuse_cross_site(sent(origin=origin, sec_fetch_site="cross-site"), ())


def test_a_websocket_of_a_foreign_page_is_refused_although_it_is_a_get() -> None:
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
def test_a_malformed_origin_is_refused(text: str) -> None:
    assert not is_origin(text)
    with pytest.raises(ValueError, match="origin"):
        MountOptions(origins=(text,))


@pytest.mark.parametrize("text", ["https://App.Example.com", "https://APP.EXAMPLE.COM:8443"])
def test_a_trusted_origin_may_have_any_case(text: str) -> None:
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
def test_the_servers_own_origin_is_built_from_a_valid_host_header(
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
def test_the_default_port_may_be_explicit(origin: str, host: str, ours: bool) -> None:
    request = Request("POST", headers={"origin": origin, "host": host})
    with nullcontext() if ours else pytest.raises(CrossSite):
        refuse_cross_site(request, ())


JOB, OTHER = new_job_id(), new_job_id()

# Quarters of a second: exact sums, without rounding at the limit.
poll_limits = st.builds(
    PollLimit, st.integers(1, 6), st.integers(1, 12).map(lambda quarters: quarters / 4)
)
pauses = st.lists(st.integers(0, 8).map(lambda quarters: quarters / 4), max_size=40)


class Model:
    """The same limit as a token bucket that fills up over time."""

    def __init__(self, limit: PollLimit) -> None:
        self.limit = limit
        self.tokens = float(limit.burst)
        self.at = 0.0

    def allows(self, now: float) -> bool:
        gained = (now - self.at) / self.limit.interval.total_seconds()
        self.tokens = min(float(self.limit.burst), self.tokens + gained)
        self.at = now
        if self.tokens < 1 - 1e-9:
            return False
        self.tokens -= 1
        return True


def seconds_refused(limiter: Limiter, now: float, job_id: JobId = JOB) -> int | None:
    try:
        limiter.count(job_id, now)
    except TooManyPolls as error:
        return error.seconds
    return None


def moments(pauses: Iterable[float]) -> list[float]:
    now, found = 0.0, list[float]()
    for pause in pauses:
        now += pause
        found.append(now)
    return found


@pytest.mark.parametrize(("burst", "interval"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -0.5)])
def test_a_limit_that_allows_nothing_is_refused(burst: int, interval: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        PollLimit(burst, interval)


def test_an_interval_is_seconds_or_a_timedelta() -> None:
    assert PollLimit(interval=1.5) == PollLimit(interval=timedelta(seconds=1.5))


@given(limit=poll_limits, now=st.floats(-1e9, 1e9))
def test_the_first_poll_is_allowed(limit: PollLimit, now: float) -> None:
    assert seconds_refused(Limiter(limit), now) is None


@given(limit=poll_limits, pauses=pauses)
def test_polls_are_allowed_like_a_token_bucket(limit: PollLimit, pauses: list[float]) -> None:
    limiter, model = Limiter(limit), Model(limit)
    for now in moments(pauses):
        assert (seconds_refused(limiter, now) is None) == model.allows(now), now


@given(limit=poll_limits, pauses=pauses)
def test_no_window_has_more_polls_than_the_burst_and_one_per_interval(
    limit: PollLimit, pauses: list[float]
) -> None:
    limiter = Limiter(limit)
    answered = [now for now in moments(pauses) if seconds_refused(limiter, now) is None]
    for (first, begin), (last, end) in combinations(enumerate(answered), 2):
        assert last - first + 1 <= limit.burst + (end - begin) / limit.interval.total_seconds()


@given(limit=poll_limits, pauses=pauses)
def test_a_client_that_waits_for_retry_after_is_allowed(
    limit: PollLimit, pauses: list[float]
) -> None:
    limiter, now = Limiter(limit), 0.0
    for pause in pauses:
        now += pause
        told = seconds_refused(limiter, now)
        if told is not None:
            assert told >= 1
            now += told
            assert seconds_refused(limiter, now) is None


def test_refused_polls_do_not_prolong_the_wait() -> None:
    limiter = Limiter(PollLimit(burst=2, interval=1.0))
    assert [seconds_refused(limiter, 0.0) for _ in range(1002)] == [None, None, *[1] * 1000]
    assert seconds_refused(limiter, 1.0) is None


def test_one_poll_per_interval_is_never_refused() -> None:
    limiter = Limiter(PollLimit(burst=1, interval=0.5))
    assert {seconds_refused(limiter, tick / 2) for tick in range(500)} == {None}


def test_each_job_is_counted_separately() -> None:
    limiter = Limiter(PollLimit(burst=1, interval=60.0))
    assert seconds_refused(limiter, 0.0) is None
    assert seconds_refused(limiter, 0.0) == 60
    assert seconds_refused(limiter, 0.0, OTHER) is None


def test_the_least_recently_polled_job_is_evicted_to_bound_memory() -> None:
    limiter = Limiter(PollLimit(burst=1, interval=60.0), max_jobs=10)
    seconds_refused(limiter, 0.0, OTHER)
    seconds_refused(limiter, 0.0)
    for number in range(9):
        assert seconds_refused(limiter, 0.0, JobId(str(number))) is None
        assert seconds_refused(limiter, 0.0) == 60  # a refused poll counts as a poll here
    assert seconds_refused(limiter, 0.0, OTHER) is None

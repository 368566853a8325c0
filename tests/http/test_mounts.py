from __future__ import annotations

from typing import Any

import pytest

from asyncjobs.core.job import new_job_id
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import Mount, MountOptions, owner_of

JOB = new_job_id()


def test_links_are_below_the_prefix() -> None:
    links = Mount().links(Request("POST"), JOB)
    assert links.status == f"/api/jobs/{JOB}"
    assert links.result == f"{links.status}/result"
    assert links.events == f"{links.status}/events"
    assert links.cancel == f"{links.status}/cancel"
    assert links.operation == f"{links.status}/operation"


def test_with_a_base_url_links_are_absolute_whatever_the_request_says() -> None:
    mount = Mount("/jobs", "https://example.com/v1")
    request = Request("POST", root="/v2", headers={"host": "evil.example"})
    links = mount.links(request, JOB)
    assert {link.partition("/jobs/")[0] for link in vars(links).values()} == {
        "https://example.com/v1"
    }


@pytest.mark.parametrize(
    ("scheme", "host", "before"),
    [
        ("http", "example.com", "http://example.com"),
        ("https", "example.com:8443", "https://example.com:8443"),
        ("http", "[::1]:80", "http://[::1]:80"),
        ("http", "", ""),
        ("http", "evil.example/x?", ""),
        ("http", "a b", ""),
    ],
)
def test_the_operation_is_named_by_the_host_that_the_client_asked(
    scheme: str, host: str, before: str
) -> None:
    request = Request("POST", headers={"host": host, "x-forwarded-host": "x"}, scheme=scheme)
    links = Mount().links(request, JOB)
    assert links.operation == f"{before}{links.status}/operation"


@pytest.mark.parametrize(
    ("prefix", "sockets"),
    [
        ("/api/jobs", "/ws/jobs"),
        ("/jobs", "/ws/jobs"),
        ("/api", "/ws/api"),
        ("/apis/jobs", "/ws/apis/jobs"),
        ("/v2/api/jobs", "/ws/v2/api/jobs"),
    ],
)
def test_each_prefix_has_sockets_of_its_own(prefix: str, sockets: str) -> None:
    assert Mount(prefix).sockets == sockets
    assert Mount(prefix, options=MountOptions(sockets="/live")).sockets == "/live"


@pytest.mark.parametrize("prefix", ["", "jobs", "/jobs/", "/"])
def test_a_prefix_begins_with_a_slash_and_ends_without_one(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        Mount(prefix)
    with pytest.raises(ValueError, match="prefix"):
        MountOptions(sockets=prefix)


def test_a_base_url_ends_without_a_slash() -> None:
    with pytest.raises(ValueError, match="base URL"):
        Mount("/jobs", "https://example.com/")


@pytest.mark.parametrize("origin", ["example.com", "https://example.com/", "*", "null", "https://"])
def test_what_is_no_origin_is_not_allowed(origin: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        MountOptions(origins=(origin,))


@pytest.mark.parametrize(
    "option", [{"keep_alive": 0}, {"stream_life": 0}, {"streams": -1}, {"longest_wait": -1}]
)
def test_a_stream_without_a_pause_or_a_negative_limit_makes_no_sense(option: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        MountOptions(**option)


def test_a_base_url_names_an_origin_of_ours() -> None:
    options = MountOptions(origins=("https://app.example",))
    mount = Mount("/jobs", "https://Example.com/v1", options=options)
    assert mount.trusted == {"https://app.example", "https://example.com"}
    assert Mount("/jobs").trusted == frozenset()


def test_an_owner_is_a_text_or_nobody() -> None:
    assert owner_of("ann") == "ann"
    assert owner_of(None) is None
    with pytest.raises(ConfigurationError, match=r"identify.*5"):
        owner_of(5)

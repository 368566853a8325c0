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


@pytest.mark.parametrize(
    ("root", "quoted"),
    [
        ("/v1", "/v1"),
        ("/v1/", "/v1"),
        ("/a b", "/a%20b"),
        ("/münchen", "/m%C3%BCnchen"),
        ("/x>; rel=evil", "/x%3E%3B%20rel%3Devil"),
        ("/x\r\nSet-Cookie: a", "/x%0D%0ASet-Cookie%3A%20a"),
    ],
)
def test_the_root_path_is_quoted_in_links(root: str, quoted: str) -> None:
    links = Mount().links(Request("POST", root=root), JOB)
    assert links.status == f"{quoted}/api/jobs/{JOB}"


def test_with_a_base_url_links_are_absolute_for_any_request() -> None:
    mount = Mount("/jobs", "https://example.com/v1")
    request = Request("POST", root="/v2", headers={"host": "evil.example"})
    links = mount.links(request, JOB)
    assert {link.partition("/jobs/")[0] for link in links} == {"https://example.com/v1"}


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
def test_the_url_of_the_operation_has_the_host_of_the_request(
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
def test_each_prefix_has_its_own_websocket_prefix(prefix: str, sockets: str) -> None:
    assert Mount(prefix).websocket_prefix == sockets
    assert Mount(prefix, options=MountOptions(websocket_prefix="/live")).websocket_prefix == "/live"


@pytest.mark.parametrize("prefix", ["", "jobs", "/jobs/", "/"])
def test_a_prefix_begins_with_a_slash_and_ends_without_one(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        Mount(prefix)
    with pytest.raises(ValueError, match="prefix"):
        MountOptions(websocket_prefix=prefix)


def test_a_base_url_ends_without_a_slash() -> None:
    with pytest.raises(ValueError, match="base URL"):
        Mount("/jobs", "https://example.com/")


@pytest.mark.parametrize(
    "option",
    [{"keep_alive_interval": 0}, {"max_stream_duration": 0}, {"max_held": -1}, {"max_wait": -1}],
)
def test_options_out_of_range_are_refused(option: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        MountOptions(**option)


def test_the_origin_of_the_base_url_is_trusted() -> None:
    options = MountOptions(origins=("https://app.example",))
    mount = Mount("/jobs", "https://Example.com/v1", options=options)
    assert mount.trusted == {"https://app.example", "https://example.com"}
    assert Mount("/jobs").trusted == frozenset()


def test_identify_must_return_a_string_or_none() -> None:
    assert owner_of("ann") == "ann"
    assert owner_of(None) is None
    with pytest.raises(ConfigurationError, match=r"identify.*5"):
        owner_of(5)

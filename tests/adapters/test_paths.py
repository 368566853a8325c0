"""Odd paths and preflights get the same answers on every framework."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest
from websockets.sync.client import connect

from asyncjobs.core.job import new_job_id
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from tests.adapters.conftest import Site, Stack

OpenSite = Callable[..., AbstractContextManager[Site]]

PREFIX = "/api/jobs"
JSON = {"count": 1}
ANN = {"X-User": "ann"}
PREFLIGHT = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}


@pytest.fixture(scope="module", params=[False, True], ids=["anonymous", "owners"])
def site(request: pytest.FixtureRequest, open_site: OpenSite, stack: Stack) -> Generator[Site]:
    def identify(request: Any) -> str:
        if "X-User" not in request.headers:
            stack.refuse(401)
        name: str = request.headers["X-User"]
        return name

    terms: dict[str, Any] = {"identify": identify} if request.param else {}
    # A busy socket soon notices that its client has disconnected.
    with open_site(options=MountOptions(keep_alive_interval=0.05), **terms) as opened:
        yield opened


@pytest.fixture(scope="module")
def owned(open_site: OpenSite) -> Generator[Site]:
    def identify(request: Any) -> Any:
        return request.headers.get("X-User")

    with open_site(identify=identify) as opened:
        yield opened


def raw(site: Site, method: str, path: str, **headers: str) -> httpx2.Response:
    """Send a path without normalising it."""
    url = site.client.base_url.copy_with(raw_path=path.encode())
    return site.client.request(method, url, headers={**ANN, **headers}, follow_redirects=False)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_odd_path_is_not_found(site: Site, method: str) -> None:
    job_id = site.client.post("/submit/outside", json=JSON, headers=ANN).json()["jobId"]
    for path in (
        *("//x", "//", "///", "//{id}", "/{id}//", "/{id}//result", "/{id}%0A", "/%0A"),
        *("/%0Ax/result", "/{id}/result%0A", "/a%2F%2Fb", "/{id}/%0A", "/%20", "/{id}/result//"),
    ):
        answer = raw(site, method, PREFIX + path.format(id=job_id))
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert ProblemDocument.model_validate_json(answer.content).code == "job_not_found"


@pytest.mark.parametrize("suffix", ["", "/result", "/operation", "/events", "/cancel"])
def test_one_slash_at_the_end_makes_no_difference(site: Site, suffix: str) -> None:
    accepted = site.client.post("/submit/double", json=JSON, headers=ANN).json()
    url = accepted["statusUrl"] + suffix
    site.call(site.jobs.wait, accepted["jobId"])
    for method in ("GET", "HEAD", "POST", "PUT"):
        plain, slash = raw(site, method, url), raw(site, method, f"{url}/")
        assert (slash.status_code, slash.content) == (plain.status_code, plain.content)
        names = ("content-type", "location", "allow", "etag")
        assert [slash.headers.get(one) for one in names] == [
            plain.headers.get(one) for one in names
        ]


def test_one_slash_at_the_end_of_a_websocket_makes_no_difference(site: Site) -> None:
    accepted = site.client.post("/submit/outside", json=JSON, headers=ANN).json()
    url = f"{site.url.replace('http', 'ws')}/ws/jobs/{accepted['jobId']}"
    for path in (url, f"{url}/"):
        with connect(path, additional_headers=ANN, open_timeout=5) as opened:
            assert accepted["jobId"] in str(opened.recv(timeout=5))


def test_one_slash_at_the_end_of_the_list_makes_no_difference(owned: Site) -> None:
    owned.client.post("/submit/outside", json=JSON, headers=ANN)
    plain, slash = raw(owned, "GET", PREFIX), raw(owned, "GET", f"{PREFIX}/")
    assert plain.status_code == 200
    assert (slash.status_code, slash.content) == (200, plain.content)
    assert raw(owned, "HEAD", f"{PREFIX}/").status_code == 200


@pytest.mark.parametrize("path", ["/job_1", "/{id}", "/{id}/cancel", "/{id}/events", "//x"])
def test_a_preflight_passes_without_credentials(site: Site, path: str) -> None:
    url = site.client.base_url.copy_with(raw_path=(PREFIX + path.format(id=new_job_id())).encode())
    answer = site.client.options(url, headers=PREFLIGHT, follow_redirects=False)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "OPTIONS" in answer.headers["allow"]


def test_options_of_an_unknown_path_is_not_found(site: Site) -> None:
    assert raw(site, "OPTIONS", f"{PREFIX}/{new_job_id()}/nothing").status_code == 404


def test_a_refused_caller_gets_the_same_answer_for_odd_requests(
    open_site: OpenSite, stack: Stack
) -> None:
    def identify(_: Any) -> str:
        stack.refuse(401)

    with open_site(identify=identify) as site:
        for method, path in (("PUT", ""), ("GET", "/"), ("GET", "/nothing"), ("DELETE", "//")):
            answer = site.client.request(method, f"{PREFIX}/{new_job_id()}{path}")
            assert answer.status_code == 401, (method, path)

"""The list of the caller's own jobs, at the prefix itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs.http.documents import ListDocument
from asyncjobs.http.problems import ProblemDocument

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

PREFIX = "/api/jobs"


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


@pytest.fixture(scope="module")
def site(open_site: OpenSite) -> Generator[Any]:
    with open_site(identify=by_header) as opened:
        yield opened


@pytest.fixture
def owner(request: pytest.FixtureRequest) -> str:
    """Return an owner without jobs."""
    return str(request.node.nodeid.encode("ascii", "replace").decode())


def submit(site: Any, owner: str, kind: str = "outside", root: str = "", **more: Any) -> str:
    headers = {"X-User": owner}
    answer = site.client.post(f"{root}/submit/{kind}", json={"count": 1}, headers=headers, **more)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["jobId"]
    return job_id


def listed(site: Any, owner: str, query: str = "", path: str = PREFIX) -> httpx2.Response:
    answer: httpx2.Response = site.client.get(path + query, headers={"X-User": owner})
    return answer


def ids(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    ListDocument.model_validate_json(answer.content)
    return [job["jobId"] for job in answer.json()["jobs"]]


def test_without_identify_there_is_no_list(open_site: OpenSite) -> None:
    with open_site() as site:
        assert site.client.get(PREFIX, follow_redirects=True).status_code == 404
        assert site.client.get(f"{PREFIX}/").status_code == 404


def test_a_list_has_the_callers_own_jobs_newest_first(site: Any, owner: str) -> None:
    mine = [submit(site, owner) for _ in range(3)]
    submit(site, "somebody else")
    answer = listed(site, owner)
    assert ids(answer) == mine[::-1]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def test_the_query_filters_the_list(site: Any, owner: str) -> None:
    outside, double = submit(site, owner), submit(site, owner, "double", params={"later": "1"})
    assert ids(listed(site, owner, "?type=outside&nonsense=%C3%A9")) == [outside]
    assert ids(listed(site, owner, "?type=double&status=pending")) == [double]
    problem = listed(site, owner, "?limit=%D9%A1")
    assert problem.status_code == 400
    assert ProblemDocument.model_validate_json(problem.content).code == "invalid_query"


@pytest.mark.parametrize("root", ["", "/v1"])
def test_pages_link_to_the_next_below_the_root_path(
    open_site: OpenSite, owner: str, root: str
) -> None:
    with open_site(root=root, identify=by_header) as site:
        mine = [submit(site, owner, root=root) for _ in range(3)]
        answer = listed(site, owner, "?limit=2", f"{root}{PREFIX}")
        following = answer.json()["next"]
        assert following.startswith(f"{root}{PREFIX}?")
        assert answer.links["next"]["url"] == following
        assert answer.json()["jobs"][0]["statusUrl"] == f"{root}{PREFIX}/{mine[-1]}"
        last = listed(site, owner, path=following)
        assert [*ids(answer), *ids(last)] == mine[::-1]
        assert "link" not in last.headers


def test_a_list_has_head_and_no_other_method(site: Any, owner: str) -> None:
    head = site.client.head(PREFIX, headers={"X-User": owner})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "application/json"
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = site.client.request(method, PREFIX, headers={"X-User": owner})
        assert answer.status_code == 405
        assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("identify", [None, by_header], ids=["anonymous", "owners"])
@pytest.mark.parametrize("when", ["first", "then"])
def test_an_app_may_have_a_submitting_route_at_the_prefix(
    open_site: OpenSite, stack: Any, when: str, identify: Any
) -> None:
    def add(app: Any) -> None:
        stack.add_plain(app, PREFIX, "POST", "the app's own")

    adding: dict[str, Any] = {when: add}
    with open_site(identify=identify, **adding) as site:
        answer = site.client.post(PREFIX)
        assert (answer.status_code, answer.text.strip('"')) == (200, "the app's own")
        assert site.client.get(PREFIX).status_code == (200 if identify else 405)

"""The list of the caller's own jobs, at the prefix itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs import JobStatus
from asyncjobs.http.documents import ListDocument, ListedDocument
from asyncjobs.http.problems import ProblemDocument

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

PREFIX = "/api/jobs"
FIELDS = {field.alias or name for name, field in ListedDocument.model_fields.items()}


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


def alice(_: Any) -> str:
    return "alice"


@pytest.fixture(scope="module")
def site(open_site: OpenSite) -> Generator[Any]:
    with open_site(identify=by_header) as opened:
        yield opened


@pytest.fixture
def who(request: pytest.FixtureRequest) -> str:
    """Name an owner who has no jobs yet."""
    return str(request.node.nodeid.encode("ascii", "replace").decode())


def submit(site: Any, who: str, kind: str = "outside", **more: Any) -> str:
    answer = site.client.post(f"/submit/{kind}", json={"count": 1}, headers={"X-User": who}, **more)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["jobId"]
    return job_id


def asked(site: Any, who: str, query: str = "", path: str = PREFIX) -> httpx2.Response:
    answer: httpx2.Response = site.client.get(path + query, headers={"X-User": who})
    return answer


def ids(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    ListDocument.model_validate_json(answer.content)
    return [job["jobId"] for job in answer.json()["jobs"]]


def pages(site: Any, who: str, query: str) -> Iterator[list[str]]:
    answer = asked(site, who, query)
    yield ids(answer)
    while (following := answer.json()["next"]) is not None:
        assert answer.links["next"]["url"] == following
        answer = asked(site, who, path=following)
        yield ids(answer)
    assert "link" not in answer.headers


def test_there_is_no_list_without_a_way_to_tell_who_asks(open_site: OpenSite) -> None:
    with open_site() as site:
        assert site.client.get(PREFIX, follow_redirects=True).status_code == 404
        assert site.client.get(f"{PREFIX}/").status_code == 404


def test_who_asks_sees_its_own_jobs_the_newest_first(site: Any, who: str) -> None:
    mine = [submit(site, who) for _ in range(3)]
    submit(site, "somebody else")
    answer = asked(site, who)
    assert ids(answer) == mine[::-1]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for job in answer.json()["jobs"]:
        assert job.keys() == FIELDS
        status = site.client.get(job.pop("statusUrl"), headers={"X-User": who}).json()
        assert {name: status[name] for name in job} == job


def test_a_list_is_filtered_by_status(site: Any, who: str) -> None:
    pending, done, failed, cancelled = (submit(site, who) for _ in range(4))
    site.call(site.jobs.complete, done, "done")
    site.call(site.jobs.fail, failed, "It broke.")
    site.call(site.jobs.cancel, cancelled)
    found = {status: ids(asked(site, who, f"?status={status}")) for status in JobStatus}
    assert found == {
        "pending": [pending],
        "processing": [],
        "completed": [done],
        "failed": [failed],
        "cancelled": [cancelled],
    }


def test_a_list_is_filtered_by_type(site: Any, who: str) -> None:
    outside, double = submit(site, who), submit(site, who, "double", params={"later": "1"})
    assert ids(asked(site, who, "?type=outside")) == [outside]
    assert ids(asked(site, who, "?type=double&status=pending")) == [double]
    assert ids(asked(site, who, "?type=double&status=failed")) == []
    assert ids(asked(site, who, "?type=no%20such&nonsense=1")) == []


def test_a_long_list_comes_in_pages(site: Any, who: str) -> None:
    mine = [submit(site, who) for _ in range(5)]
    newest = mine[::-1]
    assert list(pages(site, who, "?limit=2")) == [newest[:2], newest[2:4], newest[4:]]
    assert list(pages(site, who, "?limit=5")) == [newest]
    assert list(pages(site, who, "?limit=4&type=outside&status=pending")) == [
        newest[:4],
        newest[4:],
    ]


def test_what_comes_meanwhile_moves_no_page(site: Any, who: str) -> None:
    mine = [submit(site, who) for _ in range(3)]
    first = asked(site, who, "?limit=2")
    submit(site, who)
    assert ids(asked(site, who, path=first.json()["next"])) == mine[:1]


def test_a_page_has_twenty_jobs_unless_asked(site: Any, who: str) -> None:
    for _ in range(21):
        submit(site, who)
    assert [len(page) for page in pages(site, who, "")] == [20, 1]


def test_the_next_page_is_below_the_path_under_which_the_app_is_reached(
    open_site: OpenSite,
) -> None:
    with open_site(root="/v1", identify=alice) as site:
        for _ in range(2):
            site.client.post("/v1/submit/outside", json={"count": 1})
        first = site.client.get("/v1/api/jobs?limit=1").json()
        assert first["next"].startswith("/v1/api/jobs?")
        assert first["jobs"][0]["statusUrl"].startswith("/v1/api/jobs/job_")
        assert site.client.get(first["next"]).json()["next"] is None


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?status=done", "status"),
        ("?status=", "status"),
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?limit=-1", "limit"),
        ("?limit=many", "limit"),
        ("?limit=", "limit"),
        ("?limit=%D9%A1", "limit"),
        ("?cursor=", "cursor"),
        ("?cursor=nonsense", "cursor"),
        ("?cursor=%00", "cursor"),
        (f"?cursor={'9' * 400}", "cursor"),
    ],
)
def test_what_makes_no_sense_is_named(site: Any, who: str, query: str, named: str) -> None:
    answer = asked(site, who, query)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = ProblemDocument.model_validate_json(answer.content)
    assert problem.code == "invalid_query"
    assert named in problem.error


def test_who_is_nobody_has_no_jobs(site: Any) -> None:
    assert site.client.post("/submit/outside", json={"count": 1}).status_code == 202
    answer = site.client.get(PREFIX)
    assert (answer.status_code, answer.json()) == (200, {"jobs": [], "next": None})


def test_head_is_get_without_the_body(site: Any, who: str) -> None:
    answer = site.client.head(PREFIX, headers={"X-User": who})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_list_is_only_read(site: Any, who: str, method: str) -> None:
    answer = site.client.request(method, PREFIX, headers={"X-User": who})
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("identify", [None, by_header], ids=["nobody", "owners"])
@pytest.mark.parametrize("when", ["first", "then"])
def test_an_app_may_submit_to_the_prefix_itself(
    open_site: OpenSite, stack: Any, when: str, identify: Any
) -> None:
    def add(app: Any) -> None:
        stack.add_plain(app, PREFIX, "POST", "the app's own")

    adding: dict[str, Any] = {when: add}
    with open_site(identify=identify, **adding) as site:
        answer = site.client.post(PREFIX)
        assert (answer.status_code, answer.text.strip('"')) == (200, "the app's own")
        assert site.client.get(PREFIX).status_code == (200 if identify else 405)

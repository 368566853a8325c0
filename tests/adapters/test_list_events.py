"""Lists by tag, and their changes as events, for the caller's own jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest

from asyncjobs import EnqueueOptions, JobId, Selection
from asyncjobs.http.documents import ListDocument, ListedDocument
from asyncjobs.http.problems import ProblemDocument

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

PREFIX = "/api/jobs"
BATCH = "job_0af76519-16cd-43dd-8448-eb211c80319c"
EVENTS = {"Accept": "text/event-stream"}
ALICE, BOB, NOBODY = {"X-User": "alice"}, {"X-User": "bob"}, dict[str, str]()


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


@pytest.fixture(scope="module")
def site(open_site: OpenSite) -> Generator[Any]:
    with open_site(identify=by_header) as opened:
        yield opened


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """Return a tag that no job of another test has."""
    return f"test:{abs(hash(request.node.nodeid))}"


@pytest.fixture
def owner(tag: str) -> str:
    """Return an owner without jobs."""
    return tag


def submit(site: Any, *tags: str, owner: str = "alice", title: str | None = None) -> JobId:
    options = EnqueueOptions(tags=tags, title=title, metadata={"file": "märz.csv"})
    handle = site.call(
        partial(site.jobs.enqueue, "outside", {"count": 1}, user_id=owner, options=options)
    )
    job_id: JobId = handle.id
    return job_id


def submit_batch(site: Any, owner: str) -> tuple[JobId, list[JobId]]:
    """Submit a batch of two jobs; return its id and theirs, the newest first."""
    payloads = [{"count": 1}, {"count": 2}]
    batch = site.call(partial(site.jobs.enqueue_batch, "outside", payloads, user_id=owner))
    page = site.call(site.jobs.list, Selection(batch=batch.id))
    return batch.id, [job.id for job in page.jobs]


@contextmanager
def following(site: Any, query: str, who: dict[str, str]) -> Generator[Iterator[tuple[str, Any]]]:
    with site.client.stream("GET", f"{PREFIX}?{query}", headers=EVENTS | who) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert "Accept" in answer.headers["vary"]
        yield events_in(answer)


def events_in(answer: httpx2.Response) -> Iterator[tuple[str, Any]]:
    """Yield the type and the document of each event."""
    fields: dict[str, str] = {}
    patience = time.monotonic() + 30
    for line in answer.iter_lines():
        assert time.monotonic() < patience, "the stream does not end"
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            yield fields.get("event", "message"), json.loads(fields["data"])
        fields = {}


def test_a_list_has_the_jobs_with_a_tag_and_what_people_see_of_them(site: Any, tag: str) -> None:
    mine = [submit(site, tag, title="Customers"), submit(site, "other", tag)]
    submit(site, "other")
    submit(site, tag, owner="bob")
    answer = site.client.get(PREFIX, params={"tag": tag}, headers=ALICE)
    listed = ListDocument.model_validate_json(answer.content)
    assert [job.job_id for job in listed.jobs] == mine[::-1]
    assert [job.title for job in listed.jobs] == [None, "Customers"]
    assert [job.tags for job in listed.jobs] == [("other", tag), (tag,)]
    assert listed.jobs[0].metadata == {"file": "märz.csv"}
    status = site.client.get(listed.jobs[1].status_url, headers=ALICE).json()
    assert (status["title"], status["tags"]) == ("Customers", [tag])
    assert status["metadata"] == {"file": "märz.csv"}


def test_the_next_page_has_the_same_tag(site: Any, tag: str) -> None:
    mine = [submit(site, tag) for _ in range(3)]
    first = site.client.get(PREFIX, params={"tag": tag, "limit": 2}, headers=ALICE)
    submit(site)
    last = site.client.get(first.json()["next"], headers=ALICE).json()
    ids = [job["jobId"] for job in (*first.json()["jobs"], *last["jobs"])]
    assert (ids, last["next"]) == (mine[::-1], None)


@pytest.mark.parametrize("who", [ALICE, NOBODY], ids=["owner", "nobody"])
@pytest.mark.parametrize("accept", [{}, EVENTS])
@pytest.mark.parametrize(
    ("query", "word"), [("tag=", "empty"), ("tag=a%0Ab", "U+000A"), (f"tag={'t' * 129}", "128")]
)
def test_a_tag_that_no_job_can_have_is_a_problem(
    site: Any, query: str, word: str, accept: dict[str, str], who: dict[str, str]
) -> None:
    answer = site.client.get(f"{PREFIX}?{query}", headers=who | accept)
    assert answer.status_code == 400
    problem = ProblemDocument.model_validate_json(answer.content)
    assert problem.code == "invalid_query"
    assert problem.error.startswith("The query parameter 'tag' cannot be used: a tag ")
    assert word in problem.error


def test_a_stream_of_a_list_has_its_jobs_and_each_change(site: Any, tag: str) -> None:
    first = submit(site, tag, title="Old")
    with following(site, f"tag={tag}", ALICE) as events:
        kind, document = next(events)
        assert kind == "list"
        plain = site.client.get(PREFIX, params={"tag": tag}, headers=ALICE)
        assert document == plain.json()
        assert [job["jobId"] for job in document["jobs"]] == [first]
        submit(site, "other")
        submit(site, tag, owner="bob")
        second = submit(site, tag, title="New")
        kind, job = next(events)
        assert (kind, job["jobId"], job["title"]) == ("message", second, "New")
        ListedDocument.model_validate(job)
        site.call(site.jobs.update_progress, first, 40)
        kind, job = next(events)
        assert (kind, job["jobId"], job["progress"]) == ("message", first, 40)
        site.call(site.jobs.complete, second, "done")
        kind, job = next(events)
        assert (kind, job["jobId"], job["status"]) == ("message", second, "completed")


def test_a_job_that_leaves_the_selection_is_removed(site: Any, tag: str) -> None:
    job_id = submit(site, tag)
    with following(site, f"tag={tag}&status=pending", ALICE) as events:
        assert [job["jobId"] for job in next(events)[1]["jobs"]] == [job_id]
        site.call(site.jobs.update_progress, job_id, 1)
        assert next(events) == ("removed", {"jobId": job_id})


def test_a_stream_without_a_tag_follows_all_jobs_of_the_caller(
    open_site: OpenSite, tag: str
) -> None:
    with open_site(identify=by_header) as site:
        submit(site, owner="bob")
        with following(site, "", ALICE) as events:
            assert next(events)[1]["jobs"] == []
            job_id = submit(site, tag)
            assert next(events)[1]["jobId"] == job_id


def test_a_list_has_batches_and_not_their_members_unless_these_are_asked_for(
    site: Any, owner: str
) -> None:
    alone = submit(site, owner=owner)
    batch, members = submit_batch(site, owner)

    def listed(**query: str) -> list[Any]:
        answer = site.client.get(PREFIX, params=query, headers={"X-User": owner})
        assert answer.status_code == 200, answer.text
        return [(job["jobId"], job.get("batchId")) for job in answer.json()["jobs"]]

    of_batch = [(one, batch) for one in members]
    own = [(batch, None), (alone, None)]
    assert listed() == listed(members="false") == own
    assert listed(type="outside") == own[1:]
    assert listed(batch=batch) == listed(batch=batch, members="true") == of_batch
    assert listed(members="true") == of_batch + own


def test_the_next_page_has_members_if_they_were_asked_for(site: Any, owner: str) -> None:
    batch, members = submit_batch(site, owner)
    for query, wanted in ({"members": "true"}, [*members, batch]), ({"batch": batch}, members):
        found: list[str] = []
        page = {"next": f"{PREFIX}?limit=1&{urlencode(query)}"}
        while page["next"]:
            page = site.client.get(page["next"], headers={"X-User": owner}).json()
            found += [job["jobId"] for job in page["jobs"]]
        assert found == wanted


@pytest.mark.parametrize("accept", [{}, EVENTS])
@pytest.mark.parametrize("query", ["members=maybe", f"batch={BATCH}&members=false"])
def test_a_value_of_members_that_cannot_be_used_is_a_problem(
    site: Any, query: str, accept: dict[str, str]
) -> None:
    answer = site.client.get(f"{PREFIX}?{query}", headers=ALICE | accept)
    assert answer.status_code == 400
    problem = ProblemDocument.model_validate_json(answer.content)
    assert problem.code == "invalid_query"
    assert problem.error.startswith("The query parameter 'members' cannot be used: ")


@pytest.mark.parametrize("members", [False, True])
def test_a_stream_has_the_changes_of_members_if_these_are_asked_for(
    open_site: OpenSite, members: bool
) -> None:
    with open_site(identify=by_header) as site:
        batch, (member, other) = submit_batch(site, "alice")
        with following(site, "members=true" if members else "", ALICE) as events:
            listed = [job["jobId"] for job in next(events)[1]["jobs"]]
            assert listed == ([member, other, batch] if members else [batch])
            site.call(site.jobs.complete, member, "done")
            alone = submit(site)
            seen: dict[str, Any] = {}
            while alone not in seen or (members and member not in seen):
                job = next(events)[1]
                seen[job["jobId"]] = (job["status"], job.get("batchId"))
            assert seen.get(member) == (("completed", batch) if members else None)


@pytest.mark.parametrize("who", [BOB, NOBODY], ids=["stranger", "nobody"])
def test_a_stranger_sees_nothing_of_the_jobs_of_a_tag(
    site: Any, tag: str, who: dict[str, str]
) -> None:
    submit(site, tag)
    with following(site, f"tag={tag}", who) as events:
        assert next(events)[1] == {"jobs": [], "next": None}
        job_id = submit(site, tag)
        if who:
            theirs = submit(site, tag, owner="bob")
            kind, job = next(events)
            assert (kind, job["jobId"]) == ("message", theirs)
        else:
            assert list(events) == []
    assert site.client.get(f"{PREFIX}/{job_id}", headers=who).status_code == 404


def test_events_are_those_of_the_first_page_only(site: Any, tag: str) -> None:
    for _ in range(2):
        submit(site, tag)
    url = site.client.get(PREFIX, params={"tag": tag, "limit": 1}, headers=ALICE).json()["next"]
    answer = site.client.get(url, headers=ALICE | EVENTS)
    assert answer.status_code == 400
    assert "'cursor' cannot be used: events are those of the first page" in answer.json()["error"]


def test_head_of_a_list_of_events_has_its_headers_and_ends_at_once(site: Any, tag: str) -> None:
    submit(site, tag)
    answer = site.client.head(PREFIX, params={"tag": tag}, headers=ALICE | EVENTS)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache, no-transform"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json, text/event-stream;q=0.5", "application/json"),
        ("text/event-stream, */*;q=0.1", "text/event-stream"),
    ],
)
def test_a_client_chooses_between_json_and_events(site: Any, accept: str, kind: str) -> None:
    answer = site.client.head(PREFIX, headers=ALICE | {"Accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == kind


def test_without_identify_no_list_is_followed(open_site: OpenSite) -> None:
    with open_site() as site:
        assert site.client.get(PREFIX, headers=EVENTS).status_code == 404

"""The routes below the prefix: answers, access and limits."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from itertools import product
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus
from asyncjobs.core import lifecycle
from asyncjobs.core.job import JobId
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.errors import NotOpen
from asyncjobs.http.documents import ListDocument
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request, Response, StreamingResponse
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.routes import ROUTES, Operation, Route
from asyncjobs.http.security import PollLimit
from asyncjobs.http.streams import Close
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore
from tests.http.followers import followed, in_simulated_time
from tests.http.mounted import (
    HTML,
    UNKNOWN,
    Made,
    accept,
    an_order,
    document,
    mounted,
    of_each_status,
    submission,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

# HEAD of output asks for its end instead.
GETS = [
    route.suffix
    for route in ROUTES
    if route.method == "GET" and route.operation is not Operation.OUTPUT
]


@pytest.mark.parametrize("path", ["", "nonsense", "job_1/result", f"{UNKNOWN}//", f"{UNKNOWN}/x"])
async def test_a_path_of_an_unknown_job_is_not_found(made: Made, path: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for method in ("GET", "HEAD", "POST", "DELETE", "PUT"):
            response = await endpoints.handle(Request(method, path))
            assert response.status == 404, method
            assert document(response)["error"] == "Job not found"


async def ended_as_completed(endpoints: Endpoints, job_id: Any) -> None:
    await endpoints.jobs.complete(job_id, {"rows": 2})


async def ended_as_failed(endpoints: Endpoints, job_id: Any) -> None:
    await endpoints.jobs.fail(job_id, "The disk is full.", code="disk_full")


async def ended_as_cancelled(endpoints: Endpoints, job_id: Any) -> None:
    await endpoints.jobs.cancel(job_id)


@pytest.mark.parametrize(
    ("end", "status", "body"),
    [
        (ended_as_completed, 200, {"rows": 2}),
        (ended_as_failed, 424, None),
        (ended_as_cancelled, 410, None),
    ],
)
async def test_each_terminal_status_has_its_answer_for_the_result(
    made: Made, end: Callable[[Endpoints, Any], Awaitable[None]], status: int, body: object
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = document(await accept(endpoints, submission(b"{}"), "order"))["jobId"]
        before = await endpoints.handle(Request("GET", f"{job_id}/result"))
        await end(endpoints, job_id)
        after = await endpoints.handle(Request("GET", f"{job_id}/result"))
    assert before.status == 202
    assert document(before)["jobId"] == job_id
    assert after.status == status
    assert after.header("Retry-After") is None
    assert body is None or document(after) == body


@pytest.mark.parametrize("suffix", ["", "/result"])
async def test_a_client_that_has_this_version_gets_304(made: Made, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = document(await accept(endpoints, submission(b"{}"), "order"))["jobId"]
        await ended_as_completed(endpoints, job_id)
        first = await endpoints.handle(Request("GET", f"{job_id}{suffix}"))
        tag = first.header("ETag") or ""
        again = Request("GET", f"{job_id}{suffix}", headers={"if-none-match": tag})
        second = await endpoints.handle(again)
    assert (second.status, second.body) == (304, b"")
    assert second.header("ETag") == tag
    assert second.header("Cache-Control") == first.header("Cache-Control")


async def test_a_visible_change_changes_the_etag(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = document(await accept(endpoints, submission(b"{}"), "order"))["jobId"]
        first = await endpoints.handle(Request("GET", job_id))
        await endpoints.jobs.update_progress(job_id, 10)
        asked = Request("GET", job_id, headers={"if-none-match": first.header("ETag") or ""})
        second = await endpoints.handle(asked)
    assert second.status == 200
    assert document(second)["progress"] == 10
    assert second.header("Retry-After") == "3"


@pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])
async def test_cancel_asks_a_running_job_to_stop_and_leaves_a_terminal_job_alone(
    made: Made, method: str, suffix: str
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = document(await accept(endpoints, submission(b"{}"), "order"))["jobId"]
        await endpoints.jobs.update_progress(job_id, 10)
        asked = await endpoints.handle(Request(method, f"{job_id}{suffix}"))
        await endpoints.jobs.stop(job_id)
        after = await endpoints.handle(Request(method, f"{job_id}{suffix}"))
    assert (asked.status, document(asked)["status"]) == (202, "processing")
    assert document(asked)["cancelRequestedAt"] is not None
    assert (after.status, document(after)["status"]) == (200, "cancelled")
    assert after.header("Retry-After") is None


class Racing(FaultyStore):
    """Lets another caller write just before the next change."""

    winner: Change | None = None

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        winner, self.winner = self.winner, None
        if winner is not None:
            assert list(await super().replace([winner])) == [True]
        return await super().replace(changes)


CANCELS = pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])


@CANCELS
@pytest.mark.parametrize("status", JobStatus)
@pytest.mark.parametrize(
    "conditions",
    [
        {"if-match": '"0"'},
        {"if-match": ""},
        {"if-match": "*", "if-none-match": "*"},
        {"if-none-match": "*"},
    ],
)
async def test_cancel_with_a_false_condition_changes_nothing(
    made: Made, method: str, suffix: str, status: JobStatus, conditions: dict[str, str]
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[status]
        before = await endpoints.jobs.find(job_id)
        response = await endpoints.handle(Request(method, f"{job_id}{suffix}", headers=conditions))
        assert response.status == 412
        assert document(response)["code"] == "precondition_failed"
        assert response.header("ETag") == f'"{before.version}"'
        assert await endpoints.jobs.find(job_id) == before


@CANCELS
async def test_cancel_with_a_true_condition_cancels(made: Made, method: str, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for conditions in ({"if-match": '"0", "1"'}, {"if-match": "*"}, {"if-none-match": '"0"'}):
            path = f"{await an_order(endpoints)}{suffix}"
            response = await endpoints.handle(Request(method, path, headers=conditions))
            assert (response.status, document(response)["status"]) == (200, "cancelled")


@pytest.mark.parametrize(
    ("tags", "status"), [('"1"', 412), ('"1", "3"', 412), ('"1", "2"', 202), ("*", 202)]
)
async def test_a_change_between_the_check_and_the_cancel_is_checked_again(
    new_store: Callable[[], Any], tags: str, status: int
) -> None:
    store = Racing(new_store())
    endpoints = mounted(store)
    async with endpoints.jobs as jobs:
        job = await jobs.find(await an_order(endpoints))
        started = lifecycle.start(job, jobs.clock.now(), None)
        store.winner = Change(started, job.revision)
        cancel = Request("DELETE", job.id, headers={"if-match": tags})
        response = await endpoints.handle(cancel)
        asked = (await jobs.find(job.id)).cancel_requested_at
    assert (response.status, asked is not None) == (status, status == 202)


@pytest.mark.parametrize("suffix", ["", "/result", "/operation"])
async def test_a_read_with_a_false_if_match_gets_412(made: Made, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[JobStatus.COMPLETED]
        version = (await endpoints.jobs.find(job_id)).version
        for tag, status in ((f'"{version}"', 200), ('"0"', 412), (f'W/"{version}"', 412)):
            asked = Request("GET", f"{job_id}{suffix}", headers={"if-match": tag})
            assert (await endpoints.handle(asked)).status == status, tag


async def test_an_error_of_the_result_goes_before_its_conditions(made: Made) -> None:
    # RFC 9110 section 13.2.1: conditions are ignored if the answer is an error without them, too.
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[JobStatus.FAILED]
        asked = Request("GET", f"{job_id}/result", headers={"if-match": '"0"'})
        assert (await endpoints.handle(asked)).status == 424


async def test_an_error_of_the_server_is_raised(made: Made) -> None:
    with pytest.raises(NotOpen):
        await made().handle(Request("GET", UNKNOWN))


async def test_a_status_is_held_until_it_changes(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = document(await accept(endpoints, submission(b"{}"), "order"))["jobId"]
        seen: list[Response] = []

        async def read() -> None:
            seen.append(await endpoints.handle(Request("GET", job_id, headers=asked)))

        asked = {"prefer": "wait=20", "if-none-match": '"1"'}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await followed(endpoints.jobs)
            assert seen == []
            await endpoints.jobs.complete(job_id, {})
        again = await endpoints.handle(Request("GET", job_id, headers=asked))
    assert [one.status for one in (*seen, again)] == [200, 200]
    assert [document(one)["status"] for one in (*seen, again)] == ["processing", "completed"]


@pytest.mark.parametrize("suffix", GETS)
async def test_head_is_answered_with_the_status_and_headers_of_get(made: Made, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for status, job_id in (await of_each_status(endpoints)).items():
            got = await endpoints.handle(Request("GET", f"{job_id}{suffix}"))
            head = await endpoints.handle(Request("HEAD", f"{job_id}{suffix}"))
            if isinstance(got, StreamingResponse):
                await got.chunks.aclose()
                assert isinstance(head, StreamingResponse)
                assert [chunk async for chunk in head.chunks] == []
            assert (head.status, head.headers) == (got.status, got.headers), status


async def test_head_of_the_events_of_an_unknown_job_is_not_found(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        job_id = await an_order(endpoints, "ann")
        for request in (
            Request("HEAD", f"{UNKNOWN}/events", owner="ann"),
            Request("HEAD", f"{job_id}/events", owner="bob"),
        ):
            assert (await endpoints.handle(request)).status == 404


async def test_head_of_the_events_does_not_count_as_a_stream(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(max_held=1)))
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        for _ in range(3):
            await endpoints.handle(Request("HEAD", f"{job_id}/events"))
        events = await endpoints.handle(Request("GET", f"{job_id}/events"))
        assert isinstance(events, StreamingResponse)
        await events.chunks.aclose()


@pytest.mark.parametrize("status", JobStatus)
async def test_a_browser_gets_a_page_of_the_job_in_every_status(
    made: Made, status: JobStatus
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[status]
        page = await endpoints.handle(Request("GET", job_id, headers={"accept": HTML}))
        data = await endpoints.handle(Request("GET", job_id, headers={"accept": "*/*"}))
    assert page.status == data.status == 200
    assert (page.header("Content-Type") or "").startswith("text/html")
    assert job_id in page.body.decode()
    assert data.header("Content-Type") == "application/json"
    assert page.header("Retry-After") == data.header("Retry-After")


async def test_a_status_varies_by_accept_and_prefer(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        for headers in ({}, {"accept": HTML}, {"prefer": "wait=0"}, {"if-none-match": '"1"'}):
            answer = await endpoints.handle(Request("GET", job_id, headers=headers))
            assert answer.header("Vary") == "Accept, Prefer"


@pytest.mark.parametrize(
    ("method", "suffix", "status"),
    [
        ("GET", "/result", {JobStatus.FAILED: 424, JobStatus.CANCELLED: 410}),
        ("PUT", "/result", dict.fromkeys(JobStatus, 405)),
        ("GET", "/none", dict.fromkeys(JobStatus, 404)),
    ],
)
async def test_a_browser_gets_a_problem_as_a_page(
    made: Made, method: str, suffix: str, status: dict[JobStatus, int]
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for one, job_id in (await of_each_status(endpoints)).items():
            asked = Request(method, f"{job_id}{suffix}", headers={"accept": HTML})
            page = await endpoints.handle(asked)
            if one in status:
                assert page.status == status[one]
                assert page.header("Content-Type") == "text/html; charset=utf-8"
                other = await endpoints.handle(asked._replace(headers={}))
                assert other.header("Content-Type") == "application/problem+json"
                assert (job_id in page.body.decode()) == (status[one] != 404)


async def test_a_browser_gets_a_page_if_a_link_has_expired(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for path in (UNKNOWN, f"{UNKNOWN}/result", "nothing", "order.json"):
            page = await endpoints.handle(Request("GET", path, headers={"accept": HTML}))
            assert (page.status, page.header("Content-Type")) == (404, "text/html; charset=utf-8")
            assert "Job not found" in page.body.decode()


@pytest.mark.parametrize("suffix", ["/result", "/operation", "/events"])
async def test_only_the_status_has_a_page(made: Made, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[JobStatus.COMPLETED]
        request = Request("GET", f"{job_id}{suffix}", headers={"accept": HTML})
        answer = await endpoints.handle(request)
        if isinstance(answer, StreamingResponse):
            await answer.chunks.aclose()
    assert answer.status == 200
    assert not (answer.header("Content-Type") or "").startswith("text/html")


async def test_a_result_is_never_rendered_by_a_browser(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[JobStatus.COMPLETED]
        answer = await endpoints.handle(Request("GET", f"{job_id}/result"))
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Content-Disposition") == 'attachment; filename="order.json"'
    assert answer.header("Content-Security-Policy") == "default-src 'none'; sandbox"
    assert answer.header("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize("status", JobStatus)
async def test_cancel_by_a_browser_redirects_to_the_page(made: Made, status: JobStatus) -> None:
    endpoints = made(Mount("/jobs"))
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[status]
        request = Request("POST", f"{job_id}/cancel", root="/v1", headers={"accept": HTML})
        answer = await endpoints.handle(request)
        job = await endpoints.jobs.find(job_id)
    assert (answer.status, answer.body) == (303, b"")
    assert answer.header("Location") == f"/v1/jobs/{job_id}"
    assert answer.header("Cache-Control") == "no-store"
    assert job.status.terminal or job.cancel_requested_at is not None


async def test_delete_returns_the_job_for_any_accept_header(
    made: Made,
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        answer = await endpoints.handle(Request("DELETE", job_id, headers={"accept": HTML}))
    assert (answer.status, document(answer)["status"]) == (200, "cancelled")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
async def test_a_method_that_a_url_lacks_gets_405_with_allow(made: Made, route: Route) -> None:
    endpoints = made()
    has = {one.method for one in ROUTES if one.suffix == route.suffix}
    has |= {"HEAD"} if "GET" in has else set()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW"} - has:
            answer = await endpoints.handle(Request(method, f"{job_id}{route.suffix}"))
            assert answer.status == 405, method
            assert set((answer.header("Allow") or "").split(", ")) == {*has, "OPTIONS"}
            assert document(answer)["code"] == "method_not_allowed"
        assert (await endpoints.jobs.find(job_id)).version == 1


async def test_a_list_only_has_get_and_head(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        answer = await endpoints.handle(Request("POST", "", owner="ann"))
    assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
async def test_another_caller_gets_the_answer_of_an_unknown_job(made: Made, route: Route) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        ids = (await of_each_status(endpoints, "ann")).values()
        for job_id, owner in product(ids, ("bob", "", None, "ANN")):
            path = f"{job_id}{route.suffix}"
            foreign = await endpoints.handle(Request(route.method, path, owner=owner))
            unknown = Request(route.method, f"{UNKNOWN}{route.suffix}", owner=owner)
            assert foreign == await endpoints.handle(unknown)
            assert foreign.status == 404
        jobs = await endpoints.jobs.list(Selection("ann"))
    assert [job.version for job in jobs.jobs] == [2, 3, 3, 3, 1]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
async def test_the_owner_gets_the_job(made: Made, route: Route) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        job_id = await an_order(endpoints, "ann")
        answer = await endpoints.handle(
            Request(route.method, f"{job_id}{route.suffix.format(name='log')}", owner="ann")
        )
        if isinstance(answer, StreamingResponse):
            await answer.chunks.aclose()
    if route.operation is Operation.FILE:
        assert document(answer)["code"] == "file_not_found"
    else:
        assert answer.status in {200, 202}


async def test_without_identify_the_id_gives_access(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints, "ann")
        assert (await endpoints.handle(Request("GET", job_id))).status == 200


async def test_a_list_has_the_callers_own_jobs_newest_first(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        first, _, last = [await an_order(endpoints, owner) for owner in ("ann", "bob", "ann")]
        answer = await endpoints.handle(Request("GET", "", owner="ann"))
        head = await endpoints.handle(Request("HEAD", "", owner="ann"))
    listed = ListDocument.model_validate_json(answer.body)
    assert [job.job_id for job in listed.jobs] == [last, first]
    assert [job.status_url for job in listed.jobs] == [f"/api/jobs/{one}" for one in (last, first)]
    assert (answer.status, answer.header("Cache-Control")) == (200, "no-store")
    assert (answer.header("Link"), listed.next) == (None, None)
    assert (head.status, head.headers) == (200, answer.headers)


async def test_an_anonymous_caller_has_an_empty_list(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        await an_order(endpoints)
        answer = await endpoints.handle(Request("GET", "", owner=None))
        nameless = await endpoints.handle(Request("GET", "", owner=""))
    assert document(answer) == document(nameless) == {"jobs": [], "next": None}


async def test_each_page_of_a_list_links_to_the_next_with_the_same_filters(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        ids = [await an_order(endpoints, "ann") for _ in range(5)]
        await endpoints.jobs.cancel(ids[2])
        seen: list[str] = []
        query: str | None = "status=pending&type=order&limit=3"
        while query is not None:
            request = Request("GET", "", root="/v1", query=query, owner="ann")
            answer = await endpoints.handle(request)
            seen += [job["jobId"] for job in document(answer)["jobs"]]
            following: str | None = document(answer)["next"]
            link = None if following is None else f'<{following}>; rel="next"'
            assert answer.header("Link") == link
            query = None
            if following is not None:
                path, _, query = following.partition("?")
                assert path == "/v1/api/jobs"
    assert seen == [ids[4], ids[3], ids[1], ids[0]]


@pytest.mark.parametrize("query", ["limit=0", "status=done", "cursor=x"])
async def test_an_invalid_parameter_of_a_list_is_named_in_a_problem(made: Made, query: str) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        answer = await endpoints.handle(Request("GET", "", query=query, owner="ann"))
    assert (answer.status, document(answer)["code"]) == (400, "invalid_query")
    assert query.partition("=")[0] in document(answer)["error"]


@pytest.fixture
def limited(made: Made) -> Endpoints:
    return made(Mount(options=MountOptions(poll_limit=PollLimit(burst=2, interval=3600))))


@pytest.mark.parametrize("suffix", ["", "/result", "/operation"])
async def test_too_many_polls_get_429_with_retry_after(limited: Endpoints, suffix: str) -> None:
    async with limited.jobs:
        job_id = await an_order(limited)
        first, second, third = [
            await limited.handle(Request("GET", f"{job_id}{suffix}")) for _ in range(3)
        ]
    assert [first.status < 300, second.status < 300] == [True, True]
    assert (third.status, document(third)["code"]) == (429, "too_many_polls")
    assert 3590 <= int(third.header("Retry-After") or 0) <= 3600


async def test_all_polls_of_a_job_count_together_and_so_do_pages(limited: Endpoints) -> None:
    html = {"accept": HTML}
    async with limited.jobs:
        job_id = await an_order(limited)
        answers = [
            await limited.handle(Request("HEAD", f"{job_id}/operation")),
            await limited.handle(Request("GET", f"{job_id}/result")),
            await limited.handle(Request("GET", job_id, headers=html)),
        ]
    assert [one.status for one in answers] == [200, 202, 429]


async def test_events_and_cancel_are_not_polls(limited: Endpoints) -> None:
    async with limited.jobs:
        job_id = await an_order(limited)
        await limited.jobs.update_progress(job_id, 10)
        for _ in range(5):
            events = await limited.handle(Request("GET", f"{job_id}/events"))
            assert isinstance(events, StreamingResponse)
            await events.chunks.aclose()
            cancel = await limited.handle(Request("POST", f"{job_id}/cancel"))
            assert cancel.status == 202


async def test_polls_of_unknown_jobs_are_not_counted(limited: Endpoints) -> None:
    async with limited.jobs:
        answers = [await limited.handle(Request("GET", UNKNOWN)) for _ in range(5)]
    assert {one.status for one in answers} == {404}


@pytest.mark.parametrize("status", JobStatus)
async def test_an_operation_has_a_retry_after_until_it_is_terminal(
    made: Made, status: JobStatus
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[status]
        answer = await endpoints.handle(Request("GET", f"{job_id}/operation"))
    assert (answer.status, answer.header("Cache-Control")) == (200, "no-store")
    assert (answer.header("Retry-After") is None) == status.terminal
    assert document(answer)["id"] == job_id


@pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])
async def test_a_cross_site_request_cannot_cancel(made: Made, method: str, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        headers = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
        answer = await endpoints.handle(Request(method, f"{job_id}{suffix}", headers=headers))
        job = await endpoints.jobs.find(job_id)
    assert (answer.status, document(answer)["code"]) == (403, "cross_site")
    assert job.status is JobStatus.PENDING


async def test_a_websocket_of_another_site_is_refused_before_it_is_accepted(made: Made) -> None:
    endpoints = made()
    foreign = Request("GET", UNKNOWN, headers={"origin": "https://evil.example", "host": "a.com"})
    answer = endpoints.refuse_socket(foreign)
    assert answer is not None
    assert (answer.status, document(answer)["code"]) == (403, "cross_site")
    assert endpoints.refuse_socket(Request("GET", UNKNOWN)) is None


async def test_a_websocket_needs_the_owner_and_resumes_after_its_parameter(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints, "ann"))[JobStatus.COMPLETED]
        own = [one async for one in endpoints.follow(Request("GET", job_id, owner="ann"))]
        seen = Request("GET", job_id, query="after=3", owner="ann")
        resumed = [one async for one in endpoints.follow(seen)]
        foreign = [one async for one in endpoints.follow(Request("GET", job_id, owner="bob"))]
    assert isinstance(own[0], bytes)
    assert json.loads(own[0])["result"] == {"rows": 2}
    assert own[1:] == resumed == [Close(1000, "The job is finished.")]
    assert foreign == [Close(1008, "Job not found")]


@pytest.mark.parametrize(
    ("header", "query", "status"),
    [("3", "", 204), (None, "after=3", 204), ("2", "after=3", 200)],
)
async def test_events_resume_after_the_header_or_the_parameter(
    made: Made, header: str | None, query: str, status: int
) -> None:
    endpoints = made()
    headers = {} if header is None else {"last-event-id": header}
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[JobStatus.COMPLETED]
        answer = await endpoints.handle(
            Request("GET", f"{job_id}/events", headers=headers, query=query)
        )
    assert answer.status == status


def test_a_version_that_the_client_lacks_is_answered_at_once() -> None:
    endpoints = mounted(MemoryStore())
    answers: list[Response] = []

    async def read() -> None:
        async with endpoints.jobs:
            asked = {"prefer": "wait=20", "if-none-match": '"7"'}
            job_id = await an_order(endpoints)
            began = anyio.current_time()
            answers.append(await endpoints.handle(Request("GET", job_id, headers=asked)))
            assert anyio.current_time() == began

    in_simulated_time(read)
    assert [one.status for one in answers] == [200]
    assert answers[0].header("Preference-Applied") == "wait=20"


async def test_a_wait_without_a_change_is_answered_by_304(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(max_wait=1)))
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        endpoints.streams.end()
        asked = {"prefer": "wait=60", "if-none-match": '"1"'}
        answer = await endpoints.handle(Request("GET", job_id, headers=asked))
    assert (answer.status, answer.body) == (304, b"")
    assert answer.header("Preference-Applied") == "wait=1"
    assert answer.header("Retry-After") == "3"


async def test_requests_beyond_max_held_are_answered_at_once(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(max_held=1)))
    waits = {"prefer": "wait=20"}
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        events = await endpoints.handle(Request("GET", f"{job_id}/events"))
        assert isinstance(events, StreamingResponse)
        for headers, status in ((waits, 200), ({**waits, "if-none-match": '"1"'}, 304)):
            answer = await endpoints.handle(Request("GET", job_id, headers=headers))
            assert (answer.status, answer.header("Retry-After")) == (status, "3")
            assert answer.header("Preference-Applied") is None
        accepted = await accept(endpoints, submission(b"{}", prefer="wait=20"), "order")
        assert (accepted.status, accepted.header("Preference-Applied")) == (202, None)
        await events.chunks.aclose()


async def test_a_held_request_counts_until_it_is_answered(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(max_held=1)))
    waits = {"prefer": "wait=20", "if-none-match": '"1"'}
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(endpoints.handle, Request("GET", job_id, headers=waits))
            await followed(endpoints.jobs)
            answer = await endpoints.handle(Request("GET", job_id, headers=waits))
            assert (answer.status, answer.header("Preference-Applied")) == (304, None)
            await endpoints.jobs.cancel(job_id)
        assert endpoints.streams.has_room(1)


async def test_a_waiting_job_has_a_position_in_the_queue(store: Any) -> None:
    jobs = AsyncJobs(store, dispatcher=LocalDispatcher(concurrency=1))
    gate = anyio.Event()

    @jobs.handler("wait")
    async def wait(_: int, __: JobContext) -> None:
        await gate.wait()

    endpoints = Endpoints(jobs, Mount())
    async with jobs:
        running = (await jobs.enqueue(wait, 1)).job
        await jobs.next_change(running.id, after=running.version)
        waiting = [(await jobs.enqueue(wait, number)).job for number in range(3)]
        answers = [await endpoints.handle(Request("GET", job.id)) for job in (running, *waiting)]
        gate.set()
    assert [document(one)["position"] for one in answers] == [None, 1, 2, 3]


@pytest.mark.parametrize("suffix", GETS)
async def test_an_unavailable_store_gets_503_with_retry_after(
    made: Made, store: Any, suffix: str
) -> None:
    faulty = FaultyStore(store)
    endpoints = made(store=faulty)
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        faulty.faults = Faults(before=1, only=["get"])
        answer = await endpoints.handle(Request("GET", f"{job_id}{suffix}"))
        faulty.faults = Faults()
    assert (answer.status, document(answer)["code"]) == (503, "store_unavailable")
    assert answer.header("Retry-After") == "6"


async def test_a_request_held_while_the_queue_closes_is_answered(made: Made) -> None:
    endpoints = made()
    answers: list[Response] = []
    asked = {"prefer": "wait=20", "if-none-match": '"1"'}

    async def read(job_id: JobId) -> None:
        answers.append(await endpoints.handle(Request("GET", job_id, headers=asked)))

    async with anyio.create_task_group() as tasks, endpoints.jobs:
        tasks.start_soon(read, await an_order(endpoints))
        await followed(endpoints.jobs)
    assert [one.status for one in answers] == [304]

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import product
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, JobStatus, JobType
from asyncjobs.core.job import JobId
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.errors import ConfigurationError, NotOpen
from asyncjobs.http.documents import ListDocument
from asyncjobs.http.endpoints import Body, Endpoints, Submit, find_mount
from asyncjobs.http.messages import Request, Response, StreamingResponse
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.routes import ROUTES, Route
from asyncjobs.http.security import PollLimit
from asyncjobs.http.streams import Close
from asyncjobs.protocols import Selection
from asyncjobs.testing import Faults, FaultyStore
from tests.http.conftest import followed

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

UNKNOWN = "job_8e03978e-40d5-43dd-bc93-6894a57f9324"

NOTHING: dict[str, Any] = {}


Made = Callable[..., Endpoints]


@pytest.fixture
def made(new_store: Callable[[], Any]) -> Made:
    """Mount a queue of two types, of which one is worked on by the test."""

    def build(mount: Mount | None = None, store: Any = None) -> Endpoints:
        jobs = AsyncJobs(store or new_store())

        @jobs.handler("double", estimate=30)
        async def double(number: int, _: JobContext) -> int:
            return number * 2

        jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
        return Endpoints(jobs, mount or Mount())

    return build


def submission(body: bytes = b"21", **headers: str) -> Request:
    return Request("POST", headers={"content-type": "application/json", **headers}, body=body)


async def accept(endpoints: Endpoints, request: Request, name: str = "double") -> Response:
    kind = found(endpoints, name)
    return await endpoints.accept(request, kind, Body.UNREAD, Submit())


def found(endpoints: Endpoints, name: str) -> JobType[Any, Any]:
    return endpoints.jobs.registry.find(name)


def document(response: Response) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(response.body)
    return parsed


async def test_a_submission_is_answered_by_where_to_follow_it(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        response = await accept(endpoints, submission())
        job_id = document(response)["jobId"]
        status = await endpoints.handle(Request("GET", job_id))
    assert response.status == 202
    assert response.header("Location") == f"/api/jobs/{job_id}/result"
    assert response.header("Link") == f'</api/jobs/{job_id}>; rel="monitor"'
    assert response.header("Retry-After") == "3"
    assert response.header("Cache-Control") == "no-store"
    assert status.status == 200


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
async def test_the_root_under_which_the_app_is_reached_is_quoted_in_urls(
    made: Made, root: str, quoted: str
) -> None:
    endpoints = made()
    request = Request("POST", root=root, headers={"content-type": "application/json"}, body=b"21")
    async with endpoints.jobs:
        response = await accept(endpoints, request)
    job_id = document(response)["jobId"]
    assert response.header("Location") == f"{quoted}/api/jobs/{job_id}/result"
    assert document(response)["statusUrl"] == f"{quoted}/api/jobs/{job_id}"


async def test_a_base_url_replaces_the_root(made: Made) -> None:
    endpoints = made(Mount("/jobs", "https://example.com/api"))
    request = Request("POST", root="/v1", headers={"content-type": "application/json"}, body=b"1")
    async with endpoints.jobs:
        response = await accept(endpoints, request)
    job_id = document(response)["jobId"]
    assert document(response)["statusUrl"] == f"https://example.com/api/jobs/{job_id}"


async def test_the_trace_of_a_request_goes_on_in_its_job(made: Made) -> None:
    endpoints = made()
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with endpoints.jobs:
        accepted = await accept(
            endpoints, submission(traceparent=f"00-{trace}-b7ad6b7169203331-01")
        )
        response = await endpoints.handle(Request("GET", document(accepted)["jobId"]))
    assert document(response)["traceId"] == trace


async def test_what_the_application_says_of_a_submission_goes_before_what_the_request_says(
    made: Made,
) -> None:
    endpoints = made()
    ours, theirs = "0af7651916cd43dd8448eb211c80319c", "f" * 32
    options = EnqueueOptions(traceparent=f"00-{ours}-b7ad6b7169203331-01")
    request = submission(b"not read", traceparent=f"00-{theirs}-b7ad6b7169203331-01")
    kind = found(endpoints, "double")
    async with endpoints.jobs:
        response = await endpoints.accept(request, kind, 21, Submit("the-owner", options))
        job = await endpoints.jobs.find(document(response)["jobId"])
    assert (job.payload, job.user_id, job.trace_id) == (21, "the-owner", ours)


@pytest.mark.parametrize("path", ["", "nonsense", "job_1/result", f"{UNKNOWN}/", f"{UNKNOWN}/x"])
async def test_what_no_job_can_have_is_not_found(made: Made, path: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for method in ("GET", "HEAD", "POST", "DELETE", "PUT"):
            response = await endpoints.handle(Request(method, path))
            assert response.status == 404, method
            assert document(response)["error"] == "Job not found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", UNKNOWN, "GET, HEAD, DELETE"),
        ("POST", f"{UNKNOWN}/result", "GET, HEAD"),
        ("GET", f"{UNKNOWN}/cancel", "POST"),
        ("HEAD", f"{UNKNOWN}/cancel", "POST"),
    ],
)
async def test_a_method_that_is_not_allowed_is_told_which_are(
    made: Made, method: str, path: str, allowed: str
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        response = await endpoints.handle(Request(method, path))
    assert response.status == 405
    assert response.header("Allow") == allowed
    assert document(response)["code"] == "method_not_allowed"


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
async def test_each_end_has_its_answer_for_the_result(
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
async def test_a_client_that_has_this_version_is_not_sent_it_again(made: Made, suffix: str) -> None:
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


async def test_a_change_a_client_can_see_changes_the_tag(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = document(await accept(endpoints, submission(b"{}"), "order"))["jobId"]
        first = await endpoints.handle(Request("GET", job_id))
        await endpoints.jobs.update_progress(job_id, 10)
        asked = Request("GET", job_id, headers={"if-none-match": first.header("ETag") or ""})
        second = await endpoints.handle(asked)
    assert second.status == 200
    assert document(second)["progress"] == 10
    assert second.header("Retry-After") == "2"


@pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])
async def test_a_running_job_is_asked_to_stop_and_a_terminal_one_is_left_alone(
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


async def test_a_fault_of_the_server_is_not_hidden(made: Made) -> None:
    with pytest.raises(NotOpen):
        await made().handle(Request("GET", UNKNOWN))


async def test_the_mount_of_a_type_is_the_one_whose_queue_has_it(made: Made) -> None:
    one, other = made(), made()
    assert find_mount([one, other], other.jobs.registry.find("double")) is other


async def test_a_type_of_no_mounted_queue_is_named(made: Made) -> None:
    with pytest.raises(ConfigurationError, match=r"'double'.*mounted"):
        find_mount([], made().jobs.registry.find("double"))


async def test_a_submission_is_held_no_longer_than_it_may(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(longest_wait=1)))
    async with endpoints.jobs:
        response = await accept(endpoints, submission(b"{}", prefer="wait=60"), "order")
        done = await accept(endpoints, submission(prefer="wait=60"))
    assert (response.status, response.header("Preference-Applied")) == (202, "wait=1")
    assert (done.status, document(done)["result"]) == (200, 42)


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


async def of_each_status(endpoints: Endpoints, owner: str | None = None) -> dict[JobStatus, JobId]:
    jobs = endpoints.jobs
    made = {
        status: (await jobs.enqueue("order", NOTHING, user_id=owner)).job for status in JobStatus
    }
    await jobs.update_progress(made[JobStatus.PROCESSING].id, 10)
    await jobs.complete(made[JobStatus.COMPLETED].id, {"rows": 2})
    await jobs.fail(made[JobStatus.FAILED].id, "The disk is full.", code="disk_full")
    await jobs.cancel(made[JobStatus.CANCELLED].id)
    return {status: job.id for status, job in made.items()}


async def an_order(endpoints: Endpoints, owner: str | None = None) -> JobId:
    return (await endpoints.jobs.enqueue("order", NOTHING, user_id=owner)).id


GETS = [route.suffix for route in ROUTES if route.method == "GET"]
HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize("suffix", GETS)
async def test_every_url_that_has_get_has_head_and_answers_it_alike(
    made: Made, suffix: str
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for status, job_id in (await of_each_status(endpoints)).items():
            got = await endpoints.handle(Request("GET", f"{job_id}{suffix}"))
            head = await endpoints.handle(Request("HEAD", f"{job_id}{suffix}"))
            if isinstance(got, StreamingResponse):
                await got.chunks.aclose()
            assert not isinstance(head, StreamingResponse)
            assert (head.status, head.headers) == (got.status, got.headers), status


async def test_a_head_of_the_events_of_no_job_is_not_found(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        job_id = await an_order(endpoints, "ann")
        for request in (
            Request("HEAD", f"{UNKNOWN}/events", owner="ann"),
            Request("HEAD", f"{job_id}/events", owner="bob"),
        ):
            assert (await endpoints.handle(request)).status == 404


async def test_a_head_of_the_events_takes_no_place(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(streams=1)))
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        for _ in range(3):
            await endpoints.handle(Request("HEAD", f"{job_id}/events"))
        events = await endpoints.handle(Request("GET", f"{job_id}/events"))
        assert isinstance(events, StreamingResponse)
        await events.chunks.aclose()


@pytest.mark.parametrize("status", JobStatus)
async def test_a_person_is_shown_a_page_of_the_job_in_every_status(
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


async def test_caches_are_told_what_an_answer_depends_on(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        for headers in ({}, {"accept": HTML}, {"prefer": "wait=0"}, {"if-none-match": '"1"'}):
            answer = await endpoints.handle(Request("GET", job_id, headers=headers))
            assert answer.header("Vary") == "Accept, Prefer"


@pytest.mark.parametrize("suffix", ["/result", "/operation", "/events"])
async def test_only_the_status_itself_is_a_page(made: Made, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[JobStatus.COMPLETED]
        request = Request("GET", f"{job_id}{suffix}", headers={"accept": HTML})
        answer = await endpoints.handle(request)
        if isinstance(answer, StreamingResponse):
            await answer.chunks.aclose()
    assert answer.status == 200
    assert not (answer.header("Content-Type") or "").startswith("text/html")


async def test_whatever_a_result_holds_no_browser_renders_or_runs_it(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = (await of_each_status(endpoints))[JobStatus.COMPLETED]
        answer = await endpoints.handle(Request("GET", f"{job_id}/result"))
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Content-Disposition") == "attachment"
    assert answer.header("Content-Security-Policy") == "default-src 'none'; sandbox"
    assert answer.header("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize("status", JobStatus)
async def test_the_pages_button_leads_back_to_the_page(made: Made, status: JobStatus) -> None:
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


async def test_a_program_that_deletes_is_answered_by_the_job_whatever_it_accepts(
    made: Made,
) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        answer = await endpoints.handle(Request("DELETE", job_id, headers={"accept": HTML}))
    assert (answer.status, document(answer)["status"]) == (200, "cancelled")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
async def test_each_url_refuses_the_methods_it_does_not_have(made: Made, route: Route) -> None:
    endpoints = made()
    has = {one.method for one in ROUTES if one.suffix == route.suffix}
    has |= {"HEAD"} if "GET" in has else set()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - has:
            answer = await endpoints.handle(Request(method, f"{job_id}{route.suffix}"))
            assert answer.status == 405, method
            assert set((answer.header("Allow") or "").split(", ")) == has
        assert (await endpoints.jobs.find(job_id)).version == 1


async def test_a_list_refuses_the_methods_it_does_not_have(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        answer = await endpoints.handle(Request("POST", "", owner="ann"))
    assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
async def test_a_strangers_answer_is_that_of_no_job(made: Made, route: Route) -> None:
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
async def test_the_owner_is_served(made: Made, route: Route) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        job_id = await an_order(endpoints, "ann")
        answer = await endpoints.handle(
            Request(route.method, f"{job_id}{route.suffix}", owner="ann")
        )
        if isinstance(answer, StreamingResponse):
            await answer.chunks.aclose()
    assert answer.status in {200, 202}


async def test_where_nobody_is_identified_jobs_belong_to_whoever_has_the_id(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints, "ann")
        assert (await endpoints.handle(Request("GET", job_id))).status == 200


async def test_a_submission_belongs_to_who_asks_unless_the_application_says_otherwise(
    made: Made,
) -> None:
    endpoints = made(Mount(identified=True))
    kind = found(endpoints, "order")
    async with endpoints.jobs:
        asked = replace(submission(b"{}"), owner="ann")
        own = await endpoints.accept(asked, kind, Body.UNREAD, Submit())
        given = await endpoints.accept(asked, kind, Body.UNREAD, Submit(user_id="bob"))
        owners = [
            (await endpoints.jobs.find(document(one)["jobId"])).user_id for one in (own, given)
        ]
    assert owners == ["ann", "bob"]


async def test_a_list_shows_the_callers_own_jobs_the_newest_first(made: Made) -> None:
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


async def test_who_is_nobody_has_no_jobs(made: Made) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        await an_order(endpoints)
        answer = await endpoints.handle(Request("GET", "", owner=None))
        nameless = await endpoints.handle(Request("GET", "", owner=""))
    assert document(answer) == document(nameless) == {"jobs": [], "next": None}


async def test_pages_of_a_list_lead_to_one_another_and_keep_what_was_asked_for(made: Made) -> None:
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


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "status=done", "cursor=x", "cursor="])
async def test_a_list_asked_for_senselessly_is_a_problem_that_names_the_parameter(
    made: Made, query: str
) -> None:
    endpoints = made(Mount(identified=True))
    async with endpoints.jobs:
        answer = await endpoints.handle(Request("GET", "", query=query, owner="ann"))
    assert (answer.status, document(answer)["code"]) == (400, "invalid_query")
    assert query.partition("=")[0] in document(answer)["error"]


@pytest.fixture
def limited(made: Made) -> Endpoints:
    return made(Mount(options=MountOptions(poll_limit=PollLimit(burst=2, every=3600))))


@pytest.mark.parametrize("suffix", ["", "/result", "/operation"])
async def test_who_asks_far_too_often_is_told_when_to_come_again(
    limited: Endpoints, suffix: str
) -> None:
    async with limited.jobs:
        job_id = await an_order(limited)
        first, second, third = [
            await limited.handle(Request("GET", f"{job_id}{suffix}")) for _ in range(3)
        ]
    assert [first.status < 300, second.status < 300] == [True, True]
    assert (third.status, document(third)["code"]) == (429, "too_many_polls")
    assert 3590 <= int(third.header("Retry-After") or 0) <= 3600


async def test_all_ways_to_ask_about_a_job_count_together_and_pages_too(limited: Endpoints) -> None:
    html = {"accept": HTML}
    async with limited.jobs:
        job_id = await an_order(limited)
        answers = [
            await limited.handle(Request("HEAD", f"{job_id}/operation")),
            await limited.handle(Request("GET", f"{job_id}/result")),
            await limited.handle(Request("GET", job_id, headers=html)),
        ]
    assert [one.status for one in answers] == [200, 202, 429]


async def test_what_is_no_poll_is_never_refused_as_one(limited: Endpoints) -> None:
    async with limited.jobs:
        job_id = await an_order(limited)
        await limited.jobs.update_progress(job_id, 10)
        for _ in range(5):
            events = await limited.handle(Request("GET", f"{job_id}/events"))
            assert isinstance(events, StreamingResponse)
            await events.chunks.aclose()
            cancel = await limited.handle(Request("POST", f"{job_id}/cancel"))
            assert cancel.status == 202


async def test_what_is_not_found_counts_for_nobody(limited: Endpoints) -> None:
    async with limited.jobs:
        answers = [await limited.handle(Request("GET", UNKNOWN)) for _ in range(5)]
    assert {one.status for one in answers} == {404}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_operations_url_is_absolute(made: Made, scheme: str) -> None:
    endpoints = made()
    request = replace(submission(host="api.example.com:8443"), scheme=scheme, root="/v1")
    async with endpoints.jobs:
        answer = await accept(endpoints, request)
    job_id = document(answer)["jobId"]
    expected = f"{scheme}://api.example.com:8443/v1/api/jobs/{job_id}/operation"
    assert answer.header("Operation-Location") == expected
    assert answer.header("Location") == f"/v1/api/jobs/{job_id}/result"


@pytest.mark.parametrize("host", ["", "evil.example/path", 'x"><script>'])
async def test_a_host_that_is_none_is_in_no_url(made: Made, host: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        answer = await accept(endpoints, submission(host=host))
    job_id = document(answer)["jobId"]
    assert answer.header("Operation-Location") == f"/api/jobs/{job_id}/operation"


@pytest.mark.parametrize("status", JobStatus)
async def test_an_operation_tells_when_to_ask_again_until_it_has_ended(
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
async def test_a_page_of_another_site_cancels_nothing(made: Made, method: str, suffix: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        headers = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
        answer = await endpoints.handle(Request(method, f"{job_id}{suffix}", headers=headers))
        job = await endpoints.jobs.find(job_id)
    assert (answer.status, document(answer)["code"]) == (403, "cross_site")
    assert job.status is JobStatus.PENDING


async def test_a_page_of_another_site_submits_nothing_unless_it_is_trusted(made: Made) -> None:
    options = MountOptions(origins=("https://app.example.com",))
    endpoints = made(Mount(base_url="https://api.example.com", options=options))
    async with endpoints.jobs:
        statuses = [
            (await accept(endpoints, submission(origin=origin, host="10.0.0.1"))).status
            for origin in (
                "https://evil.example",
                "https://app.example.com",
                "https://api.example.com",
            )
        ]
    assert statuses == [403, 202, 202]


async def test_a_socket_of_another_site_is_not_even_opened(made: Made) -> None:
    endpoints = made()
    foreign = Request("GET", UNKNOWN, headers={"origin": "https://evil.example", "host": "a.com"})
    answer = endpoints.refuse_socket(foreign)
    assert answer is not None
    assert (answer.status, document(answer)["code"]) == (403, "cross_site")
    assert endpoints.refuse_socket(Request("GET", UNKNOWN)) is None


async def test_a_socket_is_the_owners_and_resumes_where_its_url_says(made: Made) -> None:
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
    [("3", "", 204), (None, "after=3", 204), ("3", "after=1", 204), ("2", "after=3", 200)],
)
async def test_events_resume_by_the_header_else_by_the_url(
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


async def test_what_the_client_does_not_have_yet_is_not_waited_for(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        asked = {"prefer": "wait=20", "if-none-match": '"7"'}
        with anyio.fail_after(5):
            answer = await endpoints.handle(Request("GET", job_id, headers=asked))
    assert answer.status == 200
    assert answer.header("Preference-Applied") == "wait=20"


async def test_a_wait_that_brought_nothing_new_is_answered_by_304(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(longest_wait=1)))
    async with endpoints.jobs:
        job_id = await an_order(endpoints)
        endpoints.streams.end()
        asked = {"prefer": "wait=60", "if-none-match": '"1"'}
        answer = await endpoints.handle(Request("GET", job_id, headers=asked))
    assert (answer.status, answer.body) == (304, b"")
    assert answer.header("Preference-Applied") == "wait=1"
    assert answer.header("Retry-After") == "2"


async def test_the_place_in_the_queue_is_told_while_a_job_waits(store: Any) -> None:
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


async def test_a_key_used_again_is_answered_as_before_and_says_so(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        first, second = [
            await accept(endpoints, submission(b"{}", **{"idempotency-key": "k"}), "order")
            for _ in range(2)
        ]
    assert document(first)["jobId"] == document(second)["jobId"]
    replayed = [one.header("Idempotency-Replayed") for one in (first, second)]
    assert (first.status, second.status, replayed) == (202, 202, [None, "true"])


async def test_the_202_of_a_job_that_has_ended_says_when_to_ask_as_any_202_does(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        request = submission(b"{}", **{"idempotency-key": "k"})
        first = await accept(endpoints, request, "order")
        await endpoints.jobs.complete(JobId(document(first)["jobId"]), {})
        again = await accept(endpoints, request, "order")
    assert (again.status, document(again)) == (202, document(first))
    assert again.header("Retry-After") == first.header("Retry-After") == "2"


@pytest.mark.parametrize("suffix", GETS)
async def test_a_store_that_is_away_is_a_problem_that_says_when_to_try_again(
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
    assert answer.header("Retry-After") == "5"


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

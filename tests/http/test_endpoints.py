from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, ConfigurationError, EnqueueOptions, JobContext, JobType, NotOpen
from asyncjobs.http.endpoints import Body, Endpoints, Submit, find_mount
from asyncjobs.http.messages import Request, Response
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.model import new_job_id

pytestmark = pytest.mark.anyio

UNKNOWN = new_job_id()


def made(mount: Mount | None = None) -> Endpoints:
    jobs = AsyncJobs("memory://")

    @jobs.handler("double", estimate=30)
    async def double(number: int, _: JobContext) -> int:
        return number * 2

    jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    return Endpoints(jobs, mount or Mount())


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


async def test_a_submission_is_answered_by_where_to_follow_it() -> None:
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
    root: str, quoted: str
) -> None:
    endpoints = made()
    request = Request("POST", root=root, headers={"content-type": "application/json"}, body=b"21")
    async with endpoints.jobs:
        response = await accept(endpoints, request)
    job_id = document(response)["jobId"]
    assert response.header("Location") == f"{quoted}/api/jobs/{job_id}/result"
    assert document(response)["statusUrl"] == f"{quoted}/api/jobs/{job_id}"


async def test_a_base_url_replaces_the_root() -> None:
    endpoints = made(Mount("/jobs", "https://example.com/api"))
    request = Request("POST", root="/v1", headers={"content-type": "application/json"}, body=b"1")
    async with endpoints.jobs:
        response = await accept(endpoints, request)
    job_id = document(response)["jobId"]
    assert document(response)["statusUrl"] == f"https://example.com/api/jobs/{job_id}"


async def test_the_trace_of_a_request_goes_on_in_its_job() -> None:
    endpoints = made()
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with endpoints.jobs:
        accepted = await accept(
            endpoints, submission(traceparent=f"00-{trace}-b7ad6b7169203331-01")
        )
        response = await endpoints.handle(Request("GET", document(accepted)["jobId"]))
    assert document(response)["traceId"] == trace


async def test_what_the_application_says_of_a_submission_goes_before_what_the_request_says() -> (
    None
):
    endpoints = made()
    ours, theirs = "0af7651916cd43dd8448eb211c80319c", "f" * 32
    options = EnqueueOptions(traceparent=f"00-{ours}-b7ad6b7169203331-01")
    request = submission(b"not read", traceparent=f"00-{theirs}-b7ad6b7169203331-01")
    kind = found(endpoints, "double")
    async with endpoints.jobs:
        response = await endpoints.accept(request, kind, 21, Submit("the-owner", options))
        job = await endpoints.jobs.find(document(response)["jobId"])
    assert (job.payload, job.user_id, job.trace_id) == (21, "the-owner", ours)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "PUT"])
@pytest.mark.parametrize("path", ["", "nonsense", "job_1/result", f"{UNKNOWN}/", f"{UNKNOWN}/x"])
async def test_what_no_job_can_have_is_not_found(method: str, path: str) -> None:
    endpoints = made()
    async with endpoints.jobs:
        response = await endpoints.handle(Request(method, path))
    assert response.status == 404
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
    method: str, path: str, allowed: str
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
    end: Callable[[Endpoints, Any], Awaitable[None]], status: int, body: object
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
async def test_a_client_that_has_this_version_is_not_sent_it_again(suffix: str) -> None:
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


async def test_a_change_a_client_can_see_changes_the_tag() -> None:
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
    method: str, suffix: str
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


async def test_a_fault_of_the_server_is_not_hidden() -> None:
    with pytest.raises(NotOpen):
        await made().handle(Request("GET", UNKNOWN))


async def test_the_mount_of_a_type_is_the_one_whose_queue_has_it() -> None:
    one, other = made(), made()
    assert find_mount([one, other], other.jobs.registry.find("double")) is other


async def test_a_type_of_no_mounted_queue_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'double'.*mounted"):
        find_mount([], made().jobs.registry.find("double"))


async def test_a_submission_is_held_no_longer_than_it_may() -> None:
    endpoints = made(Mount(options=MountOptions(longest_wait=1)))
    async with endpoints.jobs:
        response = await accept(endpoints, submission(b"{}", prefer="wait=60"), "order")
        done = await accept(endpoints, submission(prefer="wait=60"))
    assert (response.status, response.header("Preference-Applied")) == (202, "wait=1")
    assert (done.status, document(done)["result"]) == (200, 42)


async def test_a_status_is_held_until_it_changes() -> None:
    endpoints = made()
    async with endpoints.jobs:
        job_id = document(await accept(endpoints, submission(b"{}"), "order"))["jobId"]
        seen: list[Response] = []

        async def read() -> None:
            seen.append(await endpoints.handle(Request("GET", job_id, headers=asked)))

        asked = {"prefer": "wait=20", "if-none-match": '"1"'}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            await endpoints.jobs.complete(job_id, {})
        again = await endpoints.handle(Request("GET", job_id, headers=asked))
    assert [document(one)["status"] for one in (*seen, again)] == ["processing", "completed"]

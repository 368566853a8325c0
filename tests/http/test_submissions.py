"""Submissions: the inputs of `accept`, and its answers."""

from __future__ import annotations

import pytest

from asyncjobs import EnqueueOptions, Tokens, handler
from asyncjobs.core.job import JobId
from asyncjobs.errors import ConfigurationError, UnknownType
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.submissions import Body, Submit, find_mount
from tests.http.mounted import (
    Made,
    accept,
    document,
    submission,
    type_of,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]


async def test_a_submission_is_answered_by_202_and_the_urls_of_its_job(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        response = await accept(endpoints, submission())
        job_id = document(response)["jobId"]
        status = await endpoints.handle(Request("GET", job_id))
    assert response.status == 202
    assert response.header("Location") == f"/api/jobs/{job_id}/result"
    assert response.header("Link") == f'</api/jobs/{job_id}>; rel="monitor"'
    assert response.header("Operation-Location") == f"/api/jobs/{job_id}/operation"
    assert response.header("Retry-After") == "3"
    assert response.header("Cache-Control") == "no-store"
    assert status.status == 200


async def test_the_trace_of_a_request_continues_in_its_job(made: Made) -> None:
    endpoints = made()
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with endpoints.jobs:
        accepted = await accept(
            endpoints, submission(traceparent=f"00-{trace}-b7ad6b7169203331-01")
        )
        response = await endpoints.handle(Request("GET", document(accepted)["jobId"]))
    assert document(response)["traceId"] == trace


async def test_options_of_the_application_take_precedence_over_the_request(
    made: Made,
) -> None:
    endpoints = made()
    ours, theirs = "0af7651916cd43dd8448eb211c80319c", "f" * 32
    options = EnqueueOptions(traceparent=f"00-{ours}-b7ad6b7169203331-01")
    request = submission(b"not read", traceparent=f"00-{theirs}-b7ad6b7169203331-01")
    kind = type_of(endpoints, "double")
    async with endpoints.jobs:
        response = await endpoints.accept(request, kind, 21, Submit("the-owner", options))
        job = await endpoints.jobs.find(document(response)["jobId"])
    assert (job.payload, job.user_id, job.trace_id) == (21, "the-owner", ours)


async def test_a_job_belongs_to_the_caller_unless_the_application_names_an_owner(
    made: Made,
) -> None:
    endpoints = made(Mount(identified=True))
    kind = type_of(endpoints, "order")
    async with endpoints.jobs:
        asked = submission(b"{}")._replace(owner="ann")
        own = await endpoints.accept(asked, kind, Body.UNREAD, Submit())
        given = await endpoints.accept(asked, kind, Body.UNREAD, Submit(user_id="bob"))
        owners = [
            (await endpoints.jobs.find(document(one)["jobId"])).user_id for one in (own, given)
        ]
    assert owners == ["ann", "bob"]


async def test_a_submission_is_held_for_max_wait_at_most(made: Made) -> None:
    endpoints = made(Mount(options=MountOptions(max_wait=1)))
    async with endpoints.jobs:
        response = await accept(endpoints, submission(b"{}", prefer="wait=60"), "order")
        done = await accept(endpoints, submission(prefer="wait=60"))
    assert (response.status, response.header("Preference-Applied")) == (202, "wait=1")
    assert (done.status, document(done)["result"]) == (200, 42)


async def test_a_repeated_idempotency_key_is_answered_by_the_same_job(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        first, second = [
            await accept(endpoints, submission(b"{}", **{"idempotency-key": "k"}), "order")
            for _ in range(2)
        ]
    assert document(first)["jobId"] == document(second)["jobId"]
    replayed = [one.header("Idempotency-Replayed") for one in (first, second)]
    assert (first.status, second.status, replayed) == (202, 202, [None, "true"])


async def test_a_replayed_202_of_an_ended_job_has_a_retry_after(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        request = submission(b"{}", **{"idempotency-key": "k"})
        first = await accept(endpoints, request, "order")
        await endpoints.jobs.complete(JobId(document(first)["jobId"]), {})
        again = await accept(endpoints, request, "order")
    assert (again.status, document(again)) == (202, document(first))
    assert again.header("Retry-After") == first.header("Retry-After") == "3"


async def test_a_page_of_another_site_submits_only_if_it_is_trusted(made: Made) -> None:
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


async def test_find_mount_returns_the_mount_whose_queue_has_the_type(made: Made) -> None:
    one, other = made(), made()
    assert find_mount([one, other], other.jobs.registry.find("double")) is other


async def test_a_handler_is_found_by_its_name_or_alias(made: Made) -> None:
    one, other = made(), made()
    other.jobs.handler("named", aliases=("called",))(_named)
    for name in ("named", "called"):
        assert find_mount([one, other], name) is other
    async with other.jobs:
        answer = await other.accept(submission(), "called", Body.UNREAD, Submit())
        job = await other.jobs.find(document(answer)["jobId"])
    assert (answer.status, job.type) == (202, "named")


async def _named(number: int) -> int:
    return number


async def test_an_unknown_or_ambiguous_type_name_is_refused(made: Made) -> None:
    one, other = made(), made()
    with pytest.raises(UnknownType, match=r"'triple'.*double, order"):
        find_mount([one, other], "triple")
    with pytest.raises(ConfigurationError, match="Several AsyncJobs"):
        find_mount([one, other], "double")
    assert find_mount([one, Endpoints(one.jobs, Mount("/other"))], "double") is one
    with pytest.raises(ConfigurationError, match="none is mounted"):
        find_mount([], "double")


async def test_find_mount_names_a_type_that_no_mounted_queue_has(made: Made) -> None:
    with pytest.raises(ConfigurationError, match=r"'double'.*mounted"):
        find_mount([], made().jobs.registry.find("double"))


async def test_a_handler_that_is_not_included_is_refused_with_the_remedy(made: Made) -> None:
    @handler("declared")
    async def declared() -> None: ...

    endpoints = made()
    with pytest.raises(ConfigurationError, match=r"not included.*jobs\.include"):
        find_mount([endpoints], declared)
    endpoints.jobs.include(declared)
    assert find_mount([endpoints], declared) is endpoints


async def test_a_job_that_exists_is_answered_like_a_new_one(made: Made) -> None:
    endpoints = made(Mount(identified=True, tokens=Tokens("k" * 32)))
    request = submission(b"not read")._replace(owner="ann")
    async with endpoints.jobs:
        handle = await endpoints.jobs.enqueue("order", {}, user_id="ann")
        foreign = await endpoints.jobs.enqueue("order", {}, user_id="bob")
        mine, other = [
            await endpoints.accept(request, one, Body.UNREAD, Submit()) for one in (handle, foreign)
        ]
        new = await endpoints.accept(
            submission(b"{}")._replace(owner="ann"), "order", Body.UNREAD, Submit()
        )
    assert (mine.status, document(mine)["jobId"]) == (202, handle.id)
    assert [name for name, _ in mine.headers] == [name for name, _ in new.headers]
    assert mine.header("Retry-After") == new.header("Retry-After")
    assert document(mine).keys() == document(new).keys()
    assert endpoints.body_limit(handle, Body.UNREAD) is None
    # A caller who may not see the job gets no token for it.
    assert (other.status, "token" in document(other)) == (202, False)


async def test_the_answer_for_an_ended_job_is_held_only_on_request(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        handle = await endpoints.jobs.enqueue("double", 21)
        await handle.wait(timeout=60)
        ended = await endpoints.jobs.retry(handle.id)
        await ended.wait(timeout=60)
        for asked, status in ((submission(), 202), (submission(prefer="wait=10"), 200)):
            found = await endpoints.jobs.retry(handle.id)
            answer = await endpoints.accept(asked, found, Body.UNREAD, Submit())
            assert (answer.status, document(answer)["jobId"]) == (status, ended.id)


async def test_a_page_of_another_site_gets_no_answer_for_a_job(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        handle = await endpoints.jobs.enqueue("double", 21)
        request = submission(origin="https://evil.example", host="10.0.0.1")
        answer = await endpoints.accept(request, handle, Body.UNREAD, Submit())
    assert answer.status == 403


async def test_a_job_that_exists_takes_no_payload_and_no_options(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        handle = await endpoints.jobs.enqueue("double", 21)
        for payload, submit in ((21, Submit()), (Body.UNREAD, Submit(user_id="ann"))):
            with pytest.raises(ConfigurationError, match="takes only the handle"):
                await endpoints.accept(submission(), handle, payload, submit)


async def test_a_handle_is_answered_by_the_mount_of_its_queue(made: Made) -> None:
    one, other = made(), made()
    async with other.jobs:
        handle = await other.jobs.enqueue("double", 21)
        assert find_mount([one, other], handle) is other
        with pytest.raises(ConfigurationError, match="found no mount for <JobHandle job_"):
            find_mount([one], handle)
        batch = await other.jobs.enqueue_batch("double", [1])
        assert find_mount([one, other], batch) is other


async def test_an_answer_to_an_unread_body_closes_the_connection(made: Made) -> None:
    endpoints = made()
    async with endpoints.jobs:
        for body, status in ((b"21", 202), (b"x" * 1_100_000, 413)):
            request = submission(body)
            answer = await accept(endpoints, request._replace(closes=True))
            assert (answer.status, answer.header("Connection")) == (status, "close")
            assert (await accept(endpoints, request)).header("Connection") is None

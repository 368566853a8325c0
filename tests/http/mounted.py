"""Mounted endpoints, requests to them, and jobs whose work the test does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from asyncjobs import AsyncJobs, JobContext, JobStatus, JobType
from asyncjobs.core.job import JobId
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request, Response
from asyncjobs.http.mounts import Mount
from asyncjobs.http.submissions import Body, Submit

UNKNOWN = "job_8e03978e-40d5-43dd-bc93-6894a57f9324"
HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
NOTHING: dict[str, Any] = {}

Made = Callable[..., Endpoints]


def mounted(store: Any, mount: Mount | None = None) -> Endpoints:
    """Mount a queue of two types; the test itself does the work of `order`."""
    jobs = AsyncJobs(store)

    @jobs.handler("double", estimate=30)
    async def double(number: int, _: JobContext) -> int:
        return number * 2

    jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    return Endpoints(jobs, mount or Mount())


def submission(body: bytes = b"21", **headers: str) -> Request:
    return Request("POST", headers={"content-type": "application/json", **headers}, body=body)


async def accept(endpoints: Endpoints, request: Request, name: str = "double") -> Response:
    kind = type_of(endpoints, name)
    return await endpoints.accept(request, kind, Body.UNREAD, Submit())


def type_of(endpoints: Endpoints, name: str) -> JobType[Any, Any]:
    return endpoints.jobs.registry.find(name)


def document(response: Response) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(response.body)
    return parsed


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

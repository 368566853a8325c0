"""Where a request value meets the queue: the only part of `http` that awaits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from asyncjobs.errors import AsyncJobsError, ConfigurationError, UnknownJob
from asyncjobs.http.bodies import payload_of
from asyncjobs.http.conditional import etag_of, matches
from asyncjobs.http.messages import Headers, Request, Response
from asyncjobs.http.pacing import Pacing, retry_after
from asyncjobs.http.preferences import idempotency_key_of, wait_of
from asyncjobs.http.problems import no_result, not_allowed, problem_of
from asyncjobs.http.routes import Operation, match
from asyncjobs.http.wire import encode_accepted, encode_job, links_of
from asyncjobs.model import Job, JobId, JobStatus, parse_job_id
from asyncjobs.queue import AsyncJobs
from asyncjobs.registry import JobType
from asyncjobs.submission import Caller, EnqueueOptions

P = TypeVar("P")

_JSON = ("Content-Type", "application/json")
_NOSNIFF = ("X-Content-Type-Options", "nosniff")
_NO_STORE = ("Cache-Control", "no-store")
# A status may be kept, but must be asked about each time; it belongs to one user.
_REVALIDATE = ("Cache-Control", "private, no-cache")


class Body(Enum):
    """Stands for the request's own body, in place of a payload the application has read."""

    UNREAD = "unread"


@dataclass(frozen=True)
class MountOptions:
    """Where and how the routes are served.

    URLs in answers are paths below `prefix`; with a `base_url` (such as `https://api.example.com`)
    they are absolute. They are never built from what a client or a proxy says. `longest_wait` is
    the most seconds for which a client's `Prefer: wait` is heeded.
    """

    prefix: str = "/api/jobs"
    base_url: str | None = None
    pacing: Pacing = field(default_factory=Pacing)
    longest_wait: int = 25

    def __post_init__(self) -> None:
        if not self.prefix.startswith("/") or self.prefix.endswith("/"):
            raise ValueError(f"A prefix begins with a slash and ends without one: {self.prefix!r}")
        if self.base_url is not None and self.base_url.endswith("/"):
            raise ValueError(f"A base URL ends without a slash: {self.base_url!r}")


@dataclass(frozen=True)
class Submit:
    """What an application's route says of a submission beside its payload."""

    user_id: str | None = None
    options: EnqueueOptions | None = None


@dataclass(frozen=True)
class _Patience:
    """How long a request is held, and what the answer says of it."""

    seconds: float
    applied: Headers = ()


class Endpoints:
    """The routes of one mount, free of any framework."""

    def __init__(self, jobs: AsyncJobs, options: MountOptions) -> None:
        self.jobs = jobs
        self.options = options

    async def handle(self, request: Request) -> Response:
        """Answer a request for something below the prefix; never raises what a client caused."""
        return await _answered(lambda: self._route(request))

    async def accept(
        self, request: Request, kind: JobType[P, Any], payload: P | Body, submit: Submit
    ) -> Response:
        """Store and dispatch a job, then answer 202; never raises what a client caused."""
        return await _answered(lambda: self._accept(request, kind, payload, submit))

    async def _route(self, request: Request) -> Response:
        job_id, operations = match(request.path)
        known = parse_job_id(job_id)
        if known is None or not operations:
            raise UnknownJob(job_id)
        method = "GET" if request.method == "HEAD" else request.method
        match operations.get(method):
            case Operation.STATUS:
                return await self._status(request, known)
            case Operation.RESULT:
                return self._result(request, await self.jobs.find(known))
            case Operation.CANCEL:
                return self._cancelled(await self.jobs.cancel(known))
            case None:  # pragma: no branch  # there is no other case: the type checkers see to it
                return not_allowed(request.method, operations)

    async def _accept(
        self, request: Request, kind: JobType[P, Any], payload: P | Body, submit: Submit
    ) -> Response:
        value = payload_of(request, kind) if isinstance(payload, Body) else payload
        options = submit.options or EnqueueOptions()
        if options.traceparent is None:
            options = replace(options, traceparent=request.headers.get("traceparent"))
        key = idempotency_key_of(request.headers.get("idempotency-key"))
        accepted = await self.jobs.accept(kind, value, Caller(submit.user_id, key), options)
        replayed = (("Idempotency-Replayed", "true"),) if accepted.replayed else ()
        wait = self._patience(request, kind.policy.inline)
        if wait.seconds:
            job = await self.jobs.wait(accepted.job.id, timeout=wait.seconds)
            if job.status.terminal:
                headers = (_JSON, _NOSNIFF, _NO_STORE, *wait.applied, *replayed)
                return Response(HTTPStatus.OK, headers, encode_job(job))
        links = links_of(accepted.job.id, self._base(request))
        headers = (
            _JSON,
            ("Location", links.result),
            ("Link", f'<{links.status}>; rel="monitor"'),
            *self._pace(accepted.job),
            *wait.applied,
            *replayed,
            _NO_STORE,
        )
        return Response(HTTPStatus.ACCEPTED, headers, encode_accepted(accepted.job, links))

    async def _status(self, request: Request, job_id: JobId) -> Response:
        known = request.headers.get("if-none-match")
        wait = self._patience(request)
        job = await self.jobs.find(job_id)
        # A client that has not this version yet has something to read now.
        news = known is not None and not matches(known, etag_of(job.version))
        if wait.seconds and not news and not job.status.terminal:
            job = await self.jobs.next_change(job_id, after=job.version, timeout=wait.seconds)
        headers = (
            ("ETag", etag_of(job.version)),
            _REVALIDATE,
            ("Vary", "Prefer"),
            *self._pace(job),
            *wait.applied,
        )
        if matches(known, etag_of(job.version)):
            return Response(HTTPStatus.NOT_MODIFIED, headers)
        return Response(HTTPStatus.OK, (_JSON, _NOSNIFF, *headers), encode_job(job))

    def _patience(self, request: Request, usual: timedelta = timedelta(0)) -> _Patience:
        """Decide how long to hold a request: as preferred (RFC 7240, 4.3), but not for long."""
        wished = wait_of(request.headers.get("prefer"))
        if wished is None:
            return _Patience(usual.total_seconds())
        seconds = min(wished, self.options.longest_wait)
        return _Patience(seconds, (("Preference-Applied", f"wait={seconds}"),))

    def _result(self, request: Request, job: Job) -> Response:
        if not job.status.terminal:
            headers = (_JSON, _NOSNIFF, _NO_STORE, *self._pace(job))
            return Response(HTTPStatus.ACCEPTED, headers, encode_job(job))
        if job.status is not JobStatus.COMPLETED:
            return no_result(job)
        fresh = (("ETag", etag_of(job.version)), _REVALIDATE)
        if matches(request.headers.get("if-none-match"), etag_of(job.version)):
            return Response(HTTPStatus.NOT_MODIFIED, fresh)
        return Response(HTTPStatus.OK, (_JSON, _NOSNIFF, *fresh), job.result_json or b"null")

    def _cancelled(self, job: Job) -> Response:
        status = HTTPStatus.OK if job.status.terminal else HTTPStatus.ACCEPTED
        headers = (_JSON, _NOSNIFF, _NO_STORE, *self._pace(job))
        return Response(status, headers, encode_job(job))

    def _pace(self, job: Job) -> Headers:
        if job.status.terminal:
            return ()
        seconds = retry_after(job, self.jobs.clock.now(), self.options.pacing)
        return (("Retry-After", str(seconds)),)

    def _base(self, request: Request) -> str:
        if self.options.base_url is not None:
            return self.options.base_url + self.options.prefix
        # The root may stem from the request's own path: an app mounted below `/{tenant}`.
        root = quote(request.root.strip("/"))
        return f"/{root}{self.options.prefix}" if root else self.options.prefix


def find_mount(mounts: Sequence[Endpoints], kind: JobType[Any, Any]) -> Endpoints:
    """Find the mount whose queue has this type, so that links point to where the job is served."""
    found = next((one for one in mounts if kind in one.jobs.registry), None)
    if found is None:
        raise ConfigurationError(f"{kind!r} belongs to no AsyncJobs that is mounted on this app.")
    return found


async def _answered(work: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await work()
    except AsyncJobsError as error:
        answer = problem_of(error)
        if answer is None:
            raise
        return answer

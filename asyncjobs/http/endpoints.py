"""Answers requests by means of the queue; only this module and `streams` await."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar, assert_never, cast

import anyio

from asyncjobs.core.files import file_named
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Job, JobFile, JobId, JobStatus, parse_job_id
from asyncjobs.core.submission import Accepted, Batch, Caller
from asyncjobs.errors import (
    AsyncJobsError,
    FileMissing,
    InvalidQuery,
    PreconditionFailed,
    StorageUnavailable,
    UnknownFile,
    UnknownJob,
)
from asyncjobs.http import sse
from asyncjobs.http.access import Access, token_answer
from asyncjobs.http.documents import (
    AcceptedDocument,
    DocumentCache,
    ListEvents,
    OperationDocument,
    encode_list,
    of_unreadable,
    with_outputs,
    with_pace,
    with_token,
)
from asyncjobs.http.files import file_etag, part_of
from asyncjobs.http.headers import (
    allows_change,
    attachment,
    etag_of,
    idempotency_key_of,
    matches,
    prefers_events,
    prefers_html,
    retry_after,
    still_at,
    wait_of,
)
from asyncjobs.http.messages import Headers, Request, Response, StreamingResponse
from asyncjobs.http.mounts import Mount
from asyncjobs.http.output_answers import OutputAnswers, Wish
from asyncjobs.http.pages import problem_page, status_page
from asyncjobs.http.problems import (
    methods_of,
    no_result,
    no_such_range,
    not_allowed,
    other_file,
    problem_of,
)
from asyncjobs.http.requests import (
    options_of,
    page_query_of,
    parameters_of,
    payload_of,
    where_to_follow,
)
from asyncjobs.http.routes import Operation, file_in, gives_tokens, operations_at, stream_in
from asyncjobs.http.scripts import SCRIPTS, script
from asyncjobs.http.security import Limiter
from asyncjobs.http.streams import Close, Streams
from asyncjobs.http.submissions import Body, Handle, Submit, job_alone
from asyncjobs.protocols import JobHandle, Page, Selection
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.logging import log
from asyncjobs.sync import SyncJobHandle

P = TypeVar("P")

_NOSNIFF = ("X-Content-Type-Options", "nosniff")
_NO_STORE = ("Cache-Control", "no-store")
# A status may be cached by one user, and must be revalidated each time.
_REVALIDATE = ("Cache-Control", "private, no-cache")
_VARY = ("Vary", "Accept, Prefer")
_VARY_BY_ACCEPT = ("Vary", "Accept")
_JSON: Headers = (("Content-Type", "application/json"), _NOSNIFF)
# A result may contain text by strangers: browsers must never render it as a page of this site.
_INERT = ("Content-Security-Policy", "default-src 'none'; sandbox")


@dataclass(frozen=True)
class _Patience:
    """How long a request is held, and the headers that describe this in the answer."""

    seconds: float
    applied: Headers = ()


_NO_PATIENCE = _Patience(0.0)


class Endpoints:
    """The routes of one mount, independent of any framework."""

    def __init__(self, jobs: AsyncJobs, mount: Mount) -> None:
        self.jobs = jobs
        self.mount = mount
        self.access = Access(mount)
        self._documents = DocumentCache()
        self.streams = Streams(jobs, mount.options, self._documents)
        self._outputs = OutputAnswers(jobs, mount.options, self.streams)
        limit = mount.options.poll_limit
        self._limiter = None if limit is None else Limiter(limit)

    def carries_token(self, request: Request) -> bool:
        """Return whether a token takes the place of the caller, who then is not identified."""
        return self.access.token_in(request) is not None

    def answer_anyone(self, request: Request) -> Response | None:
        """Answer a request for a script or by OPTIONS; None for any other.

        Callers are not identified for these: pages load modules without an `Authorization` header,
        and browsers ask without credentials whether CORS permits a request (a preflight).
        """
        if request.method == "OPTIONS":
            return self._options(request)
        return script(request)

    def _options(self, request: Request) -> Response | None:
        _, operations = operations_at(request.path)
        offered = operations if self._offers(operations) else ()
        methods = ["GET"] if request.path.removesuffix("/") in SCRIPTS else [*offered]
        if not methods and "access-control-request-method" not in request.headers:
            return None
        # A preflight passes for any path. The application's CORS layer decides what it permits, and
        # adds headers to a 2xx; the request that follows is handled like any other.
        return Response(HTTPStatus.NO_CONTENT, (("Allow", methods_of(methods)), _NO_STORE))

    async def handle(self, request: Request) -> Response:
        """Answer a request below the prefix. Errors that a client caused are problems.

        HEAD is answered as GET is (RFC 9110, section 9.3.2); the server leaves out the body.
        Browsers that open a URL as a page get problems as pages.
        """
        is_head = request.method == "HEAD"
        try:
            asked = _as_get(request) if is_head else request
            answer = await self._answer(asked, is_head=is_head)
        except AsyncJobsError as error:
            answer = _problem_or_raise(error)
        if answer.status >= HTTPStatus.BAD_REQUEST and prefers_html(request.headers.get("accept")):
            job_id, slash, _ = request.path.partition("/")
            links = self.mount.links(request, JobId(job_id)) if job_id and slash else None
            # A caller with a token cannot open the page of the job by its plain URL.
            shown = problem_page(answer, None if self.access.token_in(request) else links)
            return self.access.sent(request, shown)
        answer = self.access.sent(request, answer)
        if is_head and isinstance(answer, StreamingResponse):
            return await answer.without_body()
        return answer

    async def accept(
        self,
        request: Request,
        what: JobType[P, Any] | str | Handle,
        payload: P | Body | Batch[P],
        submit: Submit,
    ) -> Response:
        """Store and dispatch a job or a batch, unless it is one that exists; then answer 202.

        Errors that a client caused are problems.
        """
        try:
            answer = await self._accept(request, what, payload, submit)
        except AsyncJobsError as error:
            answer = _problem_or_raise(error)
        if request.closes:
            return replace(answer, headers=(*answer.headers, ("Connection", "close")))
        return answer

    def body_limit(self, what: JobType[Any, Any] | str | Handle, payload: object) -> int | None:
        """Return the limit of the body, in bytes, if it is the payload of a job; None if it is not.

        Then the body is not read.
        """
        if isinstance(what, JobHandle | SyncJobHandle) or not isinstance(payload, Body):
            return None
        return self.jobs.registry.find(what).policy.max_payload_bytes

    def refuse_socket(self, request: Request) -> Response | None:
        """Return the refusal of a WebSocket, or None if it may be accepted."""
        try:
            parameters_of(request.query)
            self.access.refuse_socket(request, self.jobs.clock.now())
        except AsyncJobsError as error:
            return problem_of(error)
        return None

    def follow(self, request: Request) -> AsyncGenerator[bytes | Close | None]:
        """Yield the documents to send over an accepted WebSocket, and finally its close."""
        after = sse.resumes_after(None, parameters_of(request.query).get("after"))
        entered = self.access.enter_socket(request, self.jobs.clock.now())
        check = partial(self.access.check, entered)
        base = self.mount.base(request)
        if self.mount.prefix is None:
            base = base.removesuffix(self.mount.websocket_prefix)
        return self.streams.socket(
            JobId(request.path), check, after, request.room, base, entered.lasts
        )

    async def _answer(  # noqa: C901, PLR0911  # one per operation
        self, request: Request, *, is_head: bool
    ) -> Response:
        job_id, operations = self._operations_at(request.path)
        operation = operations.get(request.method)
        if operation is None:
            return not_allowed(request.method, operations)
        request = self.access.enter(request, job_id, operation, self.jobs.clock.now())
        match operation:
            case Operation.STATUS:
                return await self._status(
                    request, _unchanged(request, await self._poll(request, job_id))
                )
            case Operation.RESULT:
                return await self._result(request, await self._poll(request, job_id))
            case Operation.OPERATION:
                return self._operation(
                    request, _unchanged(request, await self._poll(request, job_id))
                )
            case Operation.EVENTS:
                return await self._events(request, job_id)
            case Operation.CANCEL:
                return await self._cancel(request, await self._find(request, job_id))
            case Operation.LIST:
                return await self._list(request)
            case Operation.FILE:
                return await self._file(request, await self._find(request, job_id))
            case Operation.OUTPUT:
                job = await self._find(request, job_id)
                wish = Wish(request.query, request.headers, request.room, is_head, request.lasts)
                return await self._outputs.answer(job, stream_in(request.path), wish)
            case Operation.RENEW | Operation.RENEW_TAG:
                return await self._renewed(request, job_id)
            case _:
                assert_never(operation)

    def _operations_at(self, path: str) -> tuple[JobId, Mapping[str, Operation]]:
        """Return the job and the operations of a path; raise `UnknownJob` if it has none."""
        job_id, operations = operations_at(path)
        known = parse_job_id(job_id) is not None if job_id else self._lists
        if not operations or not known or not self._offers(operations):
            raise UnknownJob(job_id)
        return JobId(job_id), operations

    def _offers(self, operations: Mapping[str, Operation]) -> bool:
        return self.mount.tokens is not None or not gives_tokens(operations)

    async def _find(self, request: Request, job_id: JobId) -> Job:
        return self.access.check(request, await self.jobs.find(job_id))

    async def _poll(self, request: Request, job_id: JobId) -> Job:
        """Find a job, and count this as a poll of it."""
        job = self.access.check(request, await self.jobs.find(job_id))
        if self._limiter is not None:
            self._limiter.count(job_id, anyio.current_time())
        return job

    async def _accept(
        self,
        request: Request,
        what: JobType[P, Any] | str | Handle,
        payload: P | Body | Batch[P],
        submit: Submit,
    ) -> Response:
        self.access.refuse_cross_site(request)
        if isinstance(what, JobHandle | SyncJobHandle):
            job, kinds = job_alone(what, payload, submit), self.jobs.registry
            usual = kinds.find(job.type).policy.inline_wait if job.type in kinds else timedelta(0)
            return await self._accepted(request, job, usual, self._retry_after(job))
        kind = self.jobs.registry.find(what)
        options = options_of(request, submit.options, callbacks=self.mount.options.callbacks)
        key = submit.idempotency_key
        if key is None:
            key = idempotency_key_of(request.headers.get("idempotency-key"))
        owner = request.owner if submit.user_id is None else submit.user_id
        caller = Caller(owner, key)
        if isinstance(payload, Batch):
            payloads = cast("Batch[P]", payload).payloads
            accepted = await self.jobs.accept_batch(kind, payloads, caller, options)
        else:
            value = payload_of(request, kind) if isinstance(payload, Body) else payload
            accepted = await self.jobs.accept(kind, value, caller, options)
        usual, pause = kind.policy.inline_wait, self._first_pause(accepted)
        return await self._accepted(request, accepted.job, usual, pause, replayed=accepted.replayed)

    async def _accepted(
        self,
        request: Request,
        job: Job,
        usual: timedelta,
        pause: int | None,
        *,
        replayed: bool = False,
    ) -> Response:
        """Answer 202, or 200 if the job ends while the request is held."""
        wait = self._patience(request, usual)
        links = self.mount.links(request, job.id)
        follow = where_to_follow(links, replayed=replayed)
        headers: Headers = (*_JSON, *follow, *wait.applied, _NO_STORE)
        if wait.seconds:
            ended = await self._ended(job, wait.seconds)
            if ended is not None:
                shown = await self._document(request, ended, None)
                return Response(HTTPStatus.OK, headers, self._tokened(request, ended, shown))
        # A replayed 202 of an ended job also has a delay, like the first one.
        pause = pause or self.mount.options.pacing.seconds()
        headers = (*headers, ("Location", links.result), *_retry_after_header(pause))
        shown = AcceptedDocument.encode(job, links)
        return Response(HTTPStatus.ACCEPTED, headers, self._tokened(request, job, shown))

    def _tokened(self, request: Request, job: Job, document: bytes) -> bytes:
        """Return the answer to a submission, with a token if the caller may see the job."""
        if self.mount.tokens is None or not self.access.may_see(request, job):
            return document
        issued = self.access.token_for(job.id, self.jobs.clock.now())
        renewal = self.mount.links(request, job.id).token
        return with_token(document, issued.text, renewal, issued.expires_at)

    async def _ended(self, job: Job, seconds: float) -> Job | None:
        """Return the job if it ends within that time."""
        # A job that begins later cannot have ended by then.
        if job.run_at > self.jobs.clock.now() + timedelta(seconds=seconds):
            return None
        newest = await self.streams.ended(job.id, seconds)
        return newest if newest.status.terminal else None

    @property
    def _lists(self) -> bool:
        return self.mount.identified and self.jobs.can_list

    async def _list(self, request: Request) -> Response:
        asked = page_query_of(request.query)
        grant = request.grant
        if grant is not None and asked.batch is not None and grant.subject == asked.batch:
            # The token of a batch names no owner: all its jobs have that of the batch.
            request = request._replace(owner=(await self.jobs.find(asked.batch)).user_id)
        which = Selection(
            request.owner, asked.type, asked.status, asked.tag, asked.batch, asked.members
        )
        follows = prefers_events(request.headers.get("accept"))
        base, links_of = self.mount.base(request), partial(self.mount.links, request)

        def next_url(cursor: str | None) -> str | None:
            return None if cursor is None else f"{base}?{asked.following(cursor)}"

        if follows and asked.cursor is not None:
            raise InvalidQuery("cursor", "events are those of the first page")
        if follows:
            events = ListEvents(links_of, next_url)
            # Anonymous callers own no jobs.
            watched = None if request.owner is None else (which, asked.limit)
            return await self.streams.list_events(watched, events, request.room, request.lasts)
        page = Page([])
        if request.owner is not None:
            page = await self.jobs.list(which, limit=asked.limit, after=asked.cursor)
        following = next_url(page.next)
        link = () if following is None else (("Link", f'<{following}>; rel="next"'),)
        headers = (*_JSON, *link, _NO_STORE, _VARY_BY_ACCEPT)
        return Response(HTTPStatus.OK, headers, encode_list(page, links_of, following))

    async def _events(self, request: Request, job_id: JobId) -> Response:
        given = parameters_of(request.query).get("after")
        after = sse.resumes_after(request.headers.get("last-event-id"), given)
        check = partial(self.access.check, request)
        base = self.mount.base(request)
        return await self.streams.events(job_id, check, after, request.room, base, request.lasts)

    async def _status(self, request: Request, job: Job) -> Response:
        if prefers_html(request.headers.get("accept")):
            links = self.mount.links(request, job.id)
            now = self.jobs.clock.now()
            pause = self._retry_after(job)
            output = links.output if self._outputs.may_have(job) else None
            return status_page(
                job, links, retry_after=pause, now=now, grant=request.grant, output=output
            )
        known = request.headers.get("if-none-match")
        etag = etag_of(job.version)
        is_known = known is not None and matches(known, etag)
        wait = self._patience(request)
        # A client that lacks this version is answered at once.
        if wait.seconds and (known is None or is_known) and not job.status.terminal:
            job = await self.streams.next_change(job, wait.seconds)
            etag = etag_of(job.version)
            is_known = known is not None and matches(known, etag)
        seconds = self._retry_after(job)
        headers = (
            ("ETag", etag),
            _REVALIDATE,
            _VARY,
            *_retry_after_header(seconds),
            *wait.applied,
        )
        if is_known:
            return Response(HTTPStatus.NOT_MODIFIED, headers)
        document = await self._document(request, job, seconds)
        return Response(HTTPStatus.OK, (*_JSON, *headers), document)

    async def _result(self, request: Request, job: Job) -> Response:
        match job.status:
            case JobStatus.PENDING | JobStatus.PROCESSING:
                return await self._unlasting(request, HTTPStatus.ACCEPTED, job)
            case JobStatus.FAILED | JobStatus.CANCELLED:
                return no_result(job)
            case JobStatus.COMPLETED:
                return self._completed(request, job)
            case _:
                assert_never(job.status)

    def _completed(self, request: Request, job: Job) -> Response:
        _unchanged(request, job)
        fresh = (("ETag", etag_of(job.version)), _REVALIDATE)
        if matches(request.headers.get("if-none-match"), etag_of(job.version)):
            return Response(HTTPStatus.NOT_MODIFIED, fresh)
        headers = (*_JSON, attachment(job.type, ".json"), _INERT, *fresh)
        return Response(HTTPStatus.OK, headers, job.result_json or b"null")

    async def _file(self, request: Request, job: Job) -> Response:
        name = file_in(request.path)
        while (file := file_named(job, name)) is not None:
            try:
                return await self._content(request, file)
            except StorageUnavailable:
                log.exception("A file of job %s cannot be read", job.id)
                raise
            except FileMissing:
                # Another attempt or a retry may have replaced or removed it meanwhile.
                job = await self._find(request, job.id)
                if file_named(job, name) == file:
                    log.exception("A file of job %s cannot be read", job.id)
                    raise
        raise UnknownFile(job.id, name)

    async def _content(self, request: Request, file: JobFile) -> Response:
        status, headers, start, stop = part_of(file, request.headers)
        match status:
            case HTTPStatus.NOT_MODIFIED:
                return Response(status, headers)
            case HTTPStatus.PRECONDITION_FAILED:
                return other_file(file_etag(file))
            case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return no_such_range(headers)
            case _:
                content = await self.jobs.read_content(file, start, stop)
                return StreamingResponse(status, headers, chunks=content)

    async def _renewed(self, request: Request, job_id: JobId) -> Response:
        now = self.jobs.clock.now()
        if not job_id:
            return token_answer(self.access.token_for_tag(request, now))
        job = await self._find(request, job_id)
        return token_answer(self.access.token_for(job.id, now, like=request.grant))

    def _operation(self, request: Request, job: Job) -> Response:
        headers = (*_JSON, *_retry_after_header(self._retry_after(job)), _NO_STORE)
        links = self.mount.links(request, job.id)
        return Response(HTTPStatus.OK, headers, OperationDocument.encode(job, links))

    async def _cancel(self, request: Request, found: Job) -> Response:
        job = await self._cancelled(request, found)
        if request.method == "POST" and prefers_html(request.headers.get("accept")):
            # Someone pressed the page's button: redirect to the page.
            back = ("Location", self.mount.links(request, job.id).status)
            return Response(HTTPStatus.SEE_OTHER, (back, _NO_STORE))
        status = HTTPStatus.OK if job.status.terminal else HTTPStatus.ACCEPTED
        return await self._unlasting(request, status, job)

    async def _cancelled(self, request: Request, job: Job) -> Job:
        """Cancel a job; checking the request's conditions and cancelling are one atomic step."""
        if request.headers.keys().isdisjoint(("if-match", "if-none-match")):
            return await self.jobs.cancel(job.id)
        while allows_change(request.headers, etag_of(job.version)):
            try:
                return await self.jobs.cancel(job.id, version=job.version)
            except PreconditionFailed:  # changed meanwhile, perhaps to another allowed version
                job = await self.jobs.find(job.id)
        raise PreconditionFailed(job.id, job.version)

    async def _unlasting(self, request: Request, status: HTTPStatus, job: Job) -> Response:
        """Return the status document, uncached, at a URL of another resource."""
        seconds = self._retry_after(job)
        headers = (*_JSON, _NO_STORE, *_retry_after_header(seconds))
        if request.grant is not None and "read" not in request.grant.scopes:
            shown = of_unreadable(job, self.mount.links(request, job.id))
            return Response(status, headers, shown)
        return Response(status, headers, await self._document(request, job, seconds))

    def _patience(self, request: Request, usual: timedelta = timedelta(0)) -> _Patience:
        """Return how long to hold a request: as preferred (RFC 7240, 4.3), up to `max_wait`."""
        wished = wait_of(request.headers.get("prefer"))
        if wished is None:
            patience = _Patience(usual.total_seconds()) if usual else _NO_PATIENCE
        else:
            seconds = min(wished, int(self.mount.options.max_wait.total_seconds()))
            patience = _Patience(seconds, (("Preference-Applied", f"wait={seconds}"),))
        if patience.seconds and not self.streams.has_room(request.room):
            # Answered at once; the client waits as `Retry-After` advises.
            return _NO_PATIENCE
        return patience

    async def _document(self, request: Request, job: Job, seconds: int | None) -> bytes:
        position = await self.jobs.position(job) if job.status is JobStatus.PENDING else None
        base = self.mount.base(request) if job.files else ""
        document = with_pace(self._documents.document(job, base), seconds, position)
        streams = await self._outputs.streams_of(job)
        return (
            with_outputs(document, streams, self.mount.links(request, job.id))
            if streams
            else document
        )

    def _retry_after(self, job: Job) -> int | None:
        if job.status.terminal:
            return None
        return self._pause(job, self.jobs.expected_duration(job))

    def _first_pause(self, accepted: Accepted) -> int | None:
        """Return the `Retry-After` of a submission; a new job has a fresh estimate."""
        job = accepted.job
        return (
            self._retry_after(job)
            if accepted.replayed
            else self._pause(job, job.estimated_duration)
        )

    def _pause(self, job: Job, expected: timedelta | None) -> int | None:
        return retry_after(job, self.jobs.clock.now(), self.mount.options.pacing, expected)


def _as_get(request: Request) -> Request:
    """Return the GET of a HEAD, which has no Range (RFC 9110, section 14.2)."""
    headers = request.headers
    if "range" in headers:
        headers = {name: value for name, value in headers.items() if name != "range"}
    return request._replace(method="GET", headers=headers)


def _unchanged(request: Request, job: Job) -> Job:
    """Return the job; raise `PreconditionFailed` unless it is at the version of `If-Match`."""
    if not still_at(request.headers.get("if-match"), etag_of(job.version)):
        raise PreconditionFailed(job.id, job.version)
    return job


def _retry_after_header(seconds: int | None) -> Headers:
    return () if seconds is None else (("Retry-After", str(seconds)),)


def _problem_or_raise(error: AsyncJobsError) -> Response:
    answer = problem_of(error)
    if answer is None:
        raise error
    return answer

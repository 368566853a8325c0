"""Decides which caller may use which route: the owner of a job, or the holder of its token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from asyncjobs.core.descriptions import tag_to_find
from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import AsyncJobsError, InsufficientScope, InvalidQuery, UnknownJob
from asyncjobs.http.documents import TokenDocument
from asyncjobs.http.messages import Grant, Headers, Request, Response
from asyncjobs.http.mounts import Mount
from asyncjobs.http.requests import page_query_of, parameters_of
from asyncjobs.http.routes import Operation
from asyncjobs.http.security import refuse_cross_site, refuse_foreign_socket

if TYPE_CHECKING:
    from asyncjobs.http.tokens import FoundToken, IssuedToken, Tokens

# The scope that an operation needs. Any token can be renewed.
_SCOPES: Mapping[Operation, str | None] = {
    **dict.fromkeys(Operation, "read"),
    Operation.CANCEL: "cancel",
    Operation.OUTPUT: "output",
    Operation.RENEW: None,
    Operation.RENEW_TAG: None,
}

_NOTHING = Grant("", None, ())


class Access:
    """The access to the jobs of one mount."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._tokens = mount.tokens
        self._trusted = mount.trusted

    def token_in(self, request: Request) -> FoundToken | None:
        """Return the token of a request, which takes the place of its owner; None if it has none.

        The token is not verified yet.
        """
        return None if self._tokens is None else self._tokens.find(request)

    def refuse_cross_site(self, request: Request) -> None:
        """Raise `CrossSite` if a page of another site sent an unsafe request."""
        refuse_cross_site(request, self._trusted)

    def enter(
        self, request: Request, job_id: JobId, operation: Operation, now: datetime
    ) -> Request:
        """Return the request with what its token allows.

        `job_id` is empty for a list. Raises `CrossSite` for a request without a token,
        `InvalidToken`, `InsufficientScope`, or `UnknownJob` for the token of another job.
        """
        found = self.token_in(request)
        if found is None or self._tokens is None:
            self.refuse_cross_site(request)
            return request
        # Not checked for its origin: another site does not have the token.
        renews = operation in {Operation.RENEW, Operation.RENEW_TAG}
        grant = self._tokens.read(found.text, now, renews=renews)
        if grant.subject not in ({job_id} if job_id else _opened_by(request, operation)):
            raise UnknownJob(job_id)
        scope = _SCOPES[operation]
        if scope is not None and scope not in grant.scopes:
            raise InsufficientScope(scope)
        return request._replace(grant=grant, owner=grant.owner)

    def refuse_socket(self, request: Request, now: datetime) -> None:
        """Raise the error for a WebSocket that must not be accepted.

        The token of another job is accepted: then the stream ends as for an unknown job.
        """
        found = self.token_in(request)
        if found is None or self._tokens is None:
            refuse_foreign_socket(request, self._trusted)
        elif "read" not in self._tokens.read(found.text, now).scopes:
            raise InsufficientScope("read")

    def enter_socket(self, request: Request, now: datetime) -> Request:
        """Return the request of an accepted WebSocket with what its token allows, if anything."""
        try:
            return self.enter(request, JobId(request.path), Operation.EVENTS, now)
        except AsyncJobsError:
            return request._replace(grant=_NOTHING)

    def check(self, request: Request, job: Job) -> Job:
        """Return the job if the caller may see it; raise `UnknownJob` as for an unknown one."""
        if not self.may_see(request, job):
            raise UnknownJob(job.id)
        return job

    def may_see(self, request: Request, job: Job) -> bool:
        """Return whether the job is that of the request's token, else of its caller."""
        if request.grant is not None:
            return request.grant.subject == job.id
        return not self._mount.identified or job.user_id == request.owner

    def token_for(self, job_id: JobId, now: datetime, like: Grant | None = None) -> IssuedToken:
        """Return a new token for a job that the caller may see."""
        return self._required().issue(job_id, now, like=like)

    def token_for_tag(self, request: Request, now: datetime) -> IssuedToken:
        """Return a new token for the caller's jobs with the tag that the request names."""
        subject = _subject_of(_tag_in(request))
        if request.owner is None:  # anonymous callers own no jobs
            raise UnknownJob("")
        return self._required().issue(subject, now, owner=request.owner, like=request.grant)

    def _required(self) -> Tokens:
        if self._tokens is None:
            raise UnknownJob("")  # the routes of tokens do not exist
        return self._tokens

    def sent(self, request: Request, answer: Response) -> Response:
        """Return the answer to send: a page whose URL has a token does not pass its URL on."""
        found = self.token_in(request)
        if found is None or not found.in_query:
            return answer
        kept = [pair for pair in answer.headers if pair[0] != "Referrer-Policy"]
        return replace(answer, headers=(*kept, ("Referrer-Policy", "no-referrer")))


def token_answer(issued: IssuedToken) -> Response:
    """Return the answer to the renewal of a token."""
    headers: Headers = (
        ("Content-Type", "application/json"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    )
    document = TokenDocument(token=issued.text, expires_at=issued.expires_at)
    return Response(HTTPStatus.OK, headers, document.model_dump_json(by_alias=True).encode())


def _subject_of(tag: str) -> str:
    # A job's id never begins like this.
    return f"tag:{tag}"


def _tag_in(request: Request) -> str:
    tag = parameters_of(request.query).get("tag")
    if tag is None:
        raise InvalidQuery("tag", "it is missing")
    return tag_to_find(tag)


def _opened_by(request: Request, operation: Operation) -> set[str]:
    """Return the subjects whose tokens open the list or the tag that a request names.

    They are made of the parsed values, by which the answer is found as well.
    """
    if operation is Operation.RENEW_TAG:
        return {_subject_of(_tag_in(request))}
    asked = page_query_of(request.query)
    subjects = set[str]()
    if asked.tag is not None:
        subjects.add(_subject_of(asked.tag))
    if asked.batch is not None:  # a valid job id, so never the subject of a tag
        subjects.add(asked.batch)
    return subjects

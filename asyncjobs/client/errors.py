"""What can go wrong between a client and a server, built from data.

ClientError (an AsyncJobsError)
├── JobEnded             the job is over, and there is no result
│   ├── JobFailed        its own words and code
│   └── JobCancelled
├── JobTimeout           the time that the caller gave is over; the job goes on
├── ServerUnreachable    connections, 5xx or 429 all along, for longer than was to be borne
├── RequestRefused       a submission or a cancel that the server will not do
├── NotAJob              what answers at the URL is no status monitor
│   ├── JobNotFound      there is none, or no longer, or it is another's
│   ├── NotJson          a page, for example
│   ├── AnswerTooLarge
│   ├── RedirectLoop
│   └── ForeignUrl       the monitor is said to be at another origin
├── AccessRefused        401 or 403
└── ResultMismatch       the result does not fit the type that was asked for

`asyncjobs.JobFailed` is another class: a handler raises that one to fail its own job. A handler
that follows a second job does not thereby fail in that job's words.
"""

from __future__ import annotations

from typing import Any

from asyncjobs.client.documents import JobUpdate, object_of
from asyncjobs.errors import AsyncJobsError

_SHOWN = 200


class ClientError(AsyncJobsError):
    """Catch whatever the client raises on its own account."""


class JobEnded(ClientError):
    """Say that the job ended without a result; `update` is its last document."""

    def __init__(self, update: JobUpdate, sentence: str) -> None:
        self.update = update
        super().__init__(sentence)


class JobFailed(JobEnded):
    """Say that the job failed, in the job's own words."""

    def __init__(self, update: JobUpdate) -> None:
        self.message = update.error or "The job failed."
        self.code = update.error_code or "job_failed"
        super().__init__(update, self.message)


class JobCancelled(JobEnded):
    """Say that the job was cancelled."""

    def __init__(self, update: JobUpdate) -> None:
        super().__init__(update, f"The job {_named(update)}was cancelled.")


class JobTimeout(ClientError):
    """Say that the job had not ended in time; `update` is the last that was heard, if anything.

    `reason` is the last failure to reach it, empty where there was none since.
    """

    def __init__(self, update: JobUpdate | None, seconds: float, reason: str = "") -> None:
        self.update = update
        self.seconds = seconds
        self.reason = reason
        why = f" ({reason})" if reason else ""
        last = f"nothing was heard of it{why}." if update is None else f"it is {update.status}."
        goes_on = "" if update is None else " It goes on."
        super().__init__(f"The job had not ended after {seconds:g} s; {last}{goes_on}")


class ServerUnreachable(ClientError):
    """Say that the server could not be asked; `reason` is the last failure."""

    def __init__(self, url: str, reason: str, update: JobUpdate | None = None) -> None:
        self.url = url
        self.reason = reason
        self.update = update
        super().__init__(f"{url} cannot be reached: {reason}. If it ran before, the job goes on.")


class RequestRefused(ClientError):
    """Say that the server refused a submission or a cancel; `document` is its problem, if any."""

    def __init__(self, url: str, status: int, document: Any) -> None:
        self.url = url
        self.status = status
        self.document = document
        self.code = str(object_of(document).get("code") or "")
        super().__init__(f"{url} refused with {status}: {sentence_of(document)}")


class NotAJob(ClientError):
    """Say that what was received at a URL is not a job's status."""

    def __init__(self, url: str, received: str) -> None:
        self.url = url
        self.received = received
        super().__init__(f"{url} is not the status URL of a job: received {received}.")


class JobNotFound(NotAJob):
    """Say that there is no job at the URL: it never was, is forgotten, or is another's."""


class NotJson(NotAJob):
    """Say that JSON was expected, and what came instead."""

    def __init__(self, url: str, content_type: str, body: bytes) -> None:
        self.content_type = content_type
        begin = body[:_SHOWN].decode("utf-8", "replace")
        super().__init__(url, f"{content_type or 'no Content-Type'} instead of JSON: {begin!r}")


class AnswerTooLarge(NotAJob):
    """Say that an answer was longer than the client reads, or did not end."""

    def __init__(self, url: str, limit: int) -> None:
        self.limit = limit
        super().__init__(url, f"more than {limit} bytes")


class RedirectLoop(NotAJob):
    """Say that the server sends from one URL to the next without an end."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "one redirect after the other")


class ForeignUrl(NotAJob):
    """Say that a server points to another origin, to which no credentials are to be carried."""

    def __init__(self, url: str, origin: str) -> None:
        self.origin = origin
        received = f"a reference to the other origin {origin} (allow it by `origins=`)"
        super().__init__(url, received)


class AccessRefused(ClientError):
    """Say that the server wants other credentials, or none will do."""

    def __init__(self, url: str, status: int) -> None:
        self.url = url
        self.status = status
        super().__init__(f"{url} refused access with {status}: check the client's credentials.")


class ResultMismatch(ClientError):
    """Say how a result differs from the type that was asked for; `result` is as received."""

    def __init__(self, expected: str, result: Any, reason: str) -> None:
        self.expected = expected
        self.result = result
        self.reason = reason
        super().__init__(f"The job's result is no {expected}: {reason}")


def sentence_of(document: Any) -> str:
    """Find the words for people in a problem (RFC 9457), ours or another's."""
    for name in ("error", "detail", "message", "title"):
        said = object_of(document).get(name)
        said = object_of(said).get("message", said)
        if isinstance(said, str) and said:
            return said
    return "no reason was given"


def _named(update: JobUpdate) -> str:
    return f"{update.job_id} " if update.job_id else ""

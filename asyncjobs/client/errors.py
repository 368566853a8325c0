"""The errors of the client, built from data.

ClientError (an AsyncJobsError)
├── RemoteJobUnsuccessful    the job has ended without a result
│   ├── RemoteJobFailed      the server's message and code
│   └── RemoteJobCancelled
├── JobTimeout               the caller's timeout is over; the job goes on
├── ServerUnreachable        nothing but refused connections, 5xx or 429 for too long
├── RequestRefused           the server rejected a submission, cancellation, offset or download
├── DownloadFailed           the content is not the file
│   ├── RemoteFileNotFound   the job has no such file
│   ├── RemoteFileChanged    the file was replaced meanwhile
│   └── DownloadTimeout      the caller's timeout is over
├── NotAJob                  the URL is not a job's status monitor
│   ├── JobNotFound          404 or 410
│   ├── NotJson              an HTML page, for example
│   ├── UnknownStatus        a status of a newer server
│   ├── AnswerTooLarge
│   ├── RedirectLoop
│   └── ForeignUrl           the status monitor is at another origin
├── AccessRefused            401 or 403
└── ResultMismatch           the result does not fit the requested type

`asyncjobs.JobFailed` is a different error: a handler raises it to fail its own job. A handler that
awaits a job at another server and gets `RemoteJobFailed` does not fail with that job's message.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from asyncjobs.client.documents import JobUpdate, code_of, object_of
from asyncjobs.errors import AsyncJobsError

_SHOWN_BYTES = 200


class ClientError(AsyncJobsError):
    """Base class of all errors of the client."""

    def __init__(self, sentence: str) -> None:
        # Lone surrogates are legal in a server's JSON, and no log or terminal can encode them.
        super().__init__(sentence.encode("utf-8", "replace").decode())


class RemoteJobUnsuccessful(ClientError):
    """Raised when a job has ended without a result; `update` is its last state."""

    def __init__(self, update: JobUpdate, sentence: str) -> None:
        self.update = update
        super().__init__(sentence)


class RemoteJobFailed(RemoteJobUnsuccessful):
    """Raised when a job has failed; `message` and `code` are the server's."""

    def __init__(self, update: JobUpdate) -> None:
        self.message = update.error or "The job failed."
        self.code = update.error_code or "job_failed"
        super().__init__(update, self.message)


class RemoteJobCancelled(RemoteJobUnsuccessful):
    """Raised when a job was cancelled."""

    def __init__(self, update: JobUpdate) -> None:
        super().__init__(update, f"The job {_named(update)}was cancelled.")


class JobTimeout(ClientError):
    """Raised when a job has not ended in time; `update` is its last known state, if any.

    `reason` is the last failed request since that state, empty if there was none.
    """

    def __init__(self, update: JobUpdate | None, seconds: float, reason: str = "") -> None:
        self.update = update
        self.seconds = seconds
        self.reason = reason
        why = f" ({reason})" if reason else ""
        last = f"its state is unknown{why}." if update is None else f"it is {update.status}."
        goes_on = "" if update is None else " The job continues."
        super().__init__(f"The job had not ended after {seconds:g} s; {last}{goes_on}")


class ServerUnreachable(ClientError):
    """Raised when requests keep failing; `reason` is the last failure."""

    def __init__(self, url: str, reason: str, update: JobUpdate | None = None) -> None:
        self.url = url
        self.reason = reason
        self.update = update
        shown = shown_url(url)
        super().__init__(f"{shown} cannot be reached: {reason}. A submitted job continues.")


class RequestRefused(ClientError):
    """Raised when the server rejects a submission, a cancellation, an offset or a download.

    `document` is its problem.
    """

    def __init__(self, url: str, status: int, document: Any) -> None:
        self.url = url
        self.status = status
        self.document = document
        self.code = code_of(document) or ""
        super().__init__(f"{shown_url(url)} refused with {status}: {sentence_of(document)}")


class DownloadFailed(ClientError):
    """Raised when a file of a job cannot be downloaded; `reason` says why."""

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"{shown_url(url)} was not downloaded: {reason}.")


class RemoteFileNotFound(DownloadFailed):
    """Raised when a job has no such file, or the server has lost its content."""


class RemoteFileChanged(DownloadFailed):
    """Raised when a file was replaced while it was downloaded, such as by a retry of its job."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "the file was replaced meanwhile")


class DownloadTimeout(DownloadFailed):
    """Raised when a download has not ended in time; the reason has the last failed request."""

    def __init__(self, url: str, seconds: float, reason: str = "") -> None:
        self.seconds = seconds
        why = f" ({reason})" if reason else ""
        super().__init__(url, f"it had not ended after {seconds:g} s{why}")


class NotAJob(ClientError):
    """Raised when the answer of a URL is not the status of a job."""

    def __init__(self, url: str, received: str) -> None:
        self.url = url
        self.received = received
        super().__init__(f"{shown_url(url)} is not the status URL of a job: received {received}.")


class JobNotFound(NotAJob):
    """Raised when the URL has no job: unknown, deleted, or another owner's."""


class NotJson(NotAJob):
    """Raised when an answer that should be JSON is not, or is JSON that Python cannot read."""

    def __init__(self, url: str, content_type: str, body: bytes) -> None:
        self.content_type = content_type
        begin = body[:_SHOWN_BYTES].decode("utf-8", "replace")
        what = "that cannot be read" if "json" in content_type.lower() else "instead of JSON"
        super().__init__(url, f"{content_type or 'no Content-Type'} {what}: {begin!r}")


class UnknownStatus(NotAJob):
    """Raised when a job has a status that this client does not know, and has not ended."""

    def __init__(self, url: str, status: str) -> None:
        self.status = status
        super().__init__(url, f"the status {status!r}, which this client does not know")


class AnswerTooLarge(NotAJob):
    """Raised when an answer is longer than the client reads."""

    def __init__(self, url: str, limit: int) -> None:
        self.limit = limit
        super().__init__(url, f"more than {limit} bytes")


class RedirectLoop(NotAJob):
    """Raised when the redirects of a URL do not end."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "too many redirects")


class ForeignUrl(NotAJob):
    """Raised when a server refers to another origin, which must not get the credentials."""

    def __init__(self, url: str, origin: str) -> None:
        self.origin = origin
        received = f"a link to the other origin {origin} (allow it with `origins=`)"
        super().__init__(url, received)


class AccessRefused(ClientError):
    """Raised when the server answers 401 or 403."""

    def __init__(self, url: str, status: int) -> None:
        self.url = url
        self.status = status
        shown = shown_url(url)
        super().__init__(f"{shown} refused access with {status}: check the client's credentials.")


class ResultMismatch(ClientError):
    """Raised when a result does not fit the requested type; `result` is as received."""

    def __init__(self, expected: str, result: Any, reason: str) -> None:
        self.expected = expected
        self.result = result
        self.reason = reason
        super().__init__(f"The job's result is not a valid {expected}: {reason}")


def sentence_of(document: Any) -> str:
    """Return the message of a problem document (RFC 9457), in any server's member names."""
    for name in ("error", "detail", "message", "title"):
        found = object_of(document).get(name)
        found = object_of(found).get("message", found)
        if isinstance(found, str) and found:
            return found
    return "no reason was given"


def shown_url(url: str) -> str:
    """Return a URL for messages, without user, password and query."""
    begin, mark, rest = url.partition("//")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    beyond = rest.removeprefix(authority)
    if mark and ":" in authority and "@" in beyond:
        # The part before the last "@" may be a password with an unescaped delimiter.
        return f"{begin}{mark}..."
    try:
        parts = urlsplit(f"{begin}{mark}{host}{beyond}")
        _ = parts.port  # raises for the password of a URL without a host
    except ValueError:
        return "an invalid URL"
    return parts._replace(query="..." if parts.query else "", fragment="").geturl()


def _named(update: JobUpdate) -> str:
    return f"{update.job_id} " if update.job_id else ""

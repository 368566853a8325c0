"""Interprets the answers of a server: the URLs of a job, its state, and its result."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urljoin, urlsplit

from asyncjobs.client.documents import (
    JobUpdate,
    code_of,
    object_of,
    parse_json,
    read_job,
    read_operation,
    read_resource,
    unknown_status,
)
from asyncjobs.client.errors import (
    AccessRefused,
    ForeignUrl,
    JobNotFound,
    NotAJob,
    NotJson,
    UnknownStatus,
    sentence_of,
    shown_url,
)
from asyncjobs.client.exchange import Answered
from asyncjobs.client.pace import retry_after
from asyncjobs.client.tokens import JobToken, token_in
from asyncjobs.core.status import JobStatus

# RFC 8288, section 3. No part of these patterns can begin inside a match of its own: their time is
# linear in the length of any header.
_LINK = re.compile(r"""<([^<>]*)>((?:[^,"]|"[^"]*")*)""")
_LINK_PARAMETER = re.compile(r""";\s*([^\s=;,"]+)\s*=\s*(?:"([^"]*)"|([^\s;,"]+))""")
_MAX_LINK_LENGTH = 8_192
_OPERATION_HEADERS = ("operation-location", "azure-asyncoperation")
_PUTS = frozenset({"PUT", "PATCH"})
_UNSUCCESSFUL = frozenset({JobStatus.FAILED, JobStatus.CANCELLED})
_PORTS = {"http": 80, "https": 443}
# Proxies that compress turn a strong ETag into a weak one; the number stays.
_VERSION = re.compile(r'(?:W/)?"?([0-9]{1,18})"?')
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json\b", re.IGNORECASE)
#: RFC 9110, section 15: statuses that may change when the request is repeated. 501 and 505 do not.
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
#: The problem code of asyncjobs for the result of a cancelled job.
_CANCELLED = "job_cancelled"


class MonitorKind(StrEnum):
    """The protocol of a status monitor."""

    JOB = "job"  # asyncjobs
    OPERATION = "operation"  # Microsoft's guidelines: 200, and a status word
    LOCATION = "location"  # plain HTTP: 202 until the result is available
    RESOURCE = "resource"  # Azure: the resource itself, with `properties.provisioningState`
    UNKNOWN = "unknown"  # not known before its first answer


@dataclass(frozen=True, repr=False)
class Monitor:
    """The URLs of one job, and its token if the server gave one.

    `result` is for operations whose document has no result.
    """

    status: str
    kind: MonitorKind = MonitorKind.UNKNOWN
    events: str | None = None
    result: str | None = None
    cancel: str | None = None
    job_id: str | None = None
    token: JobToken | None = None

    def __repr__(self) -> str:
        return f"Monitor({shown_url(self.status)!r}, {self.kind.value!r})"


@dataclass(frozen=True)
class SubmittedJob:
    """The job of a submission; `update` is set if the job has ended already.

    `pause` is how many seconds the server asks the client to wait before the first poll.
    """

    monitor: Monitor
    update: JobUpdate | None = None
    pause: float = 0.0


@dataclass(frozen=True)
class Trouble:
    """A temporary failure; `pause` is the server's `Retry-After` in seconds."""

    reason: str
    pause: float | None


# The answer to a submission


def read_submission(
    answer: Answered, origins: Collection[str] = (), *, method: str = "POST"
) -> SubmittedJob:
    """Find the job in the answer to a submission sent with `method`.

    A PUT, PATCH or DELETE that was carried out at once counts as a job that has ended. Raises
    `NotAJob` if the answer names no job, and `ForeignUrl` if the job's URLs are at an origin that
    is neither the submission's nor one of `origins`.
    """
    verb = method.upper()
    monitor = _monitor_of(answer, verb)
    update = read_job(problem_of(answer)) if answer.status == 200 else None
    if update is None and verb in _PUTS:
        # ARM: a 200 with a terminal state ends the operation, whatever its headers refer to.
        resource = read_resource(problem_of(answer))
        if resource is not None and resource.status.terminal and answer.status == 200:
            return SubmittedJob(Monitor(answer.asked, MonitorKind.RESOURCE), resource)
    if monitor is None:
        return _without_monitor(answer, verb, update)
    renewal = None if monitor.token is None else monitor.token.url
    for url in (monitor.status, monitor.events, monitor.result, monitor.cancel, renewal):
        require_origin(url, answer.asked, origins)
    ended = update if update is not None and update.status.terminal else None
    return SubmittedJob(monitor, ended, retry_after(answer.headers) or 0.0)


def _without_monitor(answer: Answered, method: str, update: JobUpdate | None) -> SubmittedJob:
    if update is not None:
        return SubmittedJob(Monitor(answer.url, MonitorKind.JOB, job_id=update.job_id), update)
    resource = Monitor(answer.asked, MonitorKind.RESOURCE)
    if method in _PUTS and answer.status in {200, 201}:
        update = _read_resource(answer)
        ended = update if update.status.terminal else None
        return SubmittedJob(resource, ended, retry_after(answer.headers) or 0.0)
    done = {"PUT": {204}, "PATCH": {204}, "DELETE": {200, 204}}
    if answer.status in done.get(method, ()):
        update = JobUpdate(JobStatus.COMPLETED, progress=100, result=_value_of(answer))
        return SubmittedJob(resource, update)
    if answer.status == 200:
        document_of(answer)
    raise NotAJob(answer.url, f"{answer.status} without a status URL")


def _monitor_of(answer: Answered, method: str) -> Monitor | None:
    document = object_of(problem_of(answer))

    def absolute(value: Any) -> str | None:
        return _joined(answer, value) if isinstance(value, str) and value else None

    def token() -> JobToken | None:
        return token_in(document, absolute(document.get("tokenUrl")))

    if isinstance(document.get("statusUrl"), str):
        return Monitor(
            status=_joined(answer, document["statusUrl"]),
            kind=MonitorKind.JOB,
            events=absolute(document.get("eventsUrl")),
            cancel=absolute(document.get("cancelUrl")),
            job_id=document["jobId"] if isinstance(document.get("jobId"), str) else None,
            token=token(),
        )
    link = _monitor_link(answer.headers.get("link", ""))
    if link is not None:
        job = read_job(document)
        if job is None:
            return Monitor(_joined(answer, link))
        return Monitor(_joined(answer, link), MonitorKind.JOB, job_id=job.job_id, token=token())
    operation = _operation_of(answer)
    location = answer.headers.get("location")
    if operation is not None:
        # Azure: the result of a PUT or PATCH is the resource itself, and a DELETE has none.
        result = answer.asked if method in _PUTS else absolute(location)
        return Monitor(
            operation, MonitorKind.OPERATION, result=None if method == "DELETE" else result
        )
    if location and answer.status == 202:
        return Monitor(_joined(answer, location), MonitorKind.LOCATION)
    return None


def renewed_token(answer: Answered, before: JobToken) -> JobToken | None:
    """Return the token in the answer to a renewal; None if it has none."""
    if answer.status != 200:
        return None
    document = object_of(problem_of(answer))
    return token_in({**document, "tokenExpiresAt": document.get("expiresAt")}, before.url)


def _monitor_link(header: str) -> str | None:
    """Return the target of the first link to a monitor (RFC 8288); ignore a header beyond 8 KB."""
    if len(header) > _MAX_LINK_LENGTH:
        return None
    for target, parameters in _LINK.findall(header):
        for name, quoted, token in _LINK_PARAMETER.findall(parameters):
            if name.lower() == "rel":
                if "monitor" in (quoted or token).lower().split():
                    return str(target)
                break  # section 3.3: a second `rel` is ignored
    return None


def _operation_of(answer: Answered) -> str | None:
    for name in _OPERATION_HEADERS:
        if answer.headers.get(name):
            return _joined(answer, answer.headers[name])
    return None


def _joined(answer: Answered, url: str) -> str:
    try:
        return urljoin(answer.url, url)
    except ValueError:
        raise NotAJob(answer.url, f"an invalid URL: {url!r}") from None


def events_url(status_url: str, job_id: str) -> str | None:
    """Derive the events URL of a job of asyncjobs, which its status document does not contain."""
    parts = urlsplit(status_url)
    if not parts.path.endswith(f"/{job_id}"):
        return None
    return parts._replace(path=f"{parts.path}/events", query="", fragment="").geturl()


def require_origin(url: str | None, asked: str, origins: Collection[str]) -> None:
    """Raise `ForeignUrl` unless a URL is at the origin that was asked or at one of `origins`.

    The same host by TLS is allowed: many servers redirect http to https.
    """
    if url is None:
        return
    found = origin_of(url)
    allowed = {origin_of(asked), *map(origin_of, origins)}
    host = found.removeprefix("https://").removesuffix(":443")
    secured = found == f"https://{host}:443" and f"http://{host}:80" in allowed
    if found not in allowed and not secured:
        raise ForeignUrl(asked, found)


def origin_of(url: str) -> str:
    """Return the origin of a URL, with the default port spelt out (RFC 6454)."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    try:
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    return f"{parts.scheme}://{parts.hostname or ''}:{port}".lower()


# The answer of a status monitor


def trouble_of(answer: Answered) -> Trouble | None:
    """Return the trouble if the same request may succeed later, else None."""
    if answer.status not in _TEMPORARY and not 520 <= answer.status <= 599:
        return None
    return Trouble(f"the response was {answer.status}", retry_after(answer.headers))


def version_of(text: str | None) -> int | None:
    """Return the version in an ETag or an event's id; None if it is not a version of asyncjobs."""
    found = _VERSION.fullmatch(text or "")
    return int(found[1]) if found else None


def read_status(answer: Answered, kind: MonitorKind) -> tuple[MonitorKind, JobUpdate]:
    """Return the state of the job, and the kind of the monitor that describes it.

    Raises `AccessRefused`, `JobNotFound`, `NotJson`, `UnknownStatus` or `NotAJob`.
    """
    unknown = kind is MonitorKind.UNKNOWN
    if kind is MonitorKind.LOCATION or (unknown and _is_location(answer)):
        return MonitorKind.LOCATION, _read_location(answer)
    _require_job(answer)
    if answer.status >= 400:
        raise NotAJob(answer.url, f"{answer.status}: {sentence_of(problem_of(answer))}")
    if kind is MonitorKind.RESOURCE:
        return MonitorKind.RESOURCE, _read_resource(answer)
    document = document_of(answer)
    job = None if kind is MonitorKind.OPERATION else read_job(document, _etag_version(answer))
    operation = read_operation(document, any_word=kind is MonitorKind.OPERATION)
    resource = read_resource(document) if unknown else None
    if 200 <= answer.status < 300:
        if job is not None:
            return MonitorKind.JOB, job
        if operation is not None:
            return MonitorKind.OPERATION, operation
        if resource is not None:
            return MonitorKind.RESOURCE, resource
    raise no_status(answer.url, answer.status, document)


def no_status(url: str, status: int, document: Any) -> NotAJob:
    """Return the error for JSON that is not the status of a job, or has an unknown status."""
    word = unknown_status(document)
    if word is not None:
        return UnknownStatus(url, word)
    return NotAJob(url, f"{status} with JSON that is not a job status")


def moved_url(answer: Answered, kind: MonitorKind) -> str | None:
    """Return the URL to which a status monitor has moved, or None if it has not."""
    if kind is MonitorKind.LOCATION and answer.status == 202:
        location = answer.headers.get("location")
        return _joined(answer, location) if location else None
    return _operation_of(answer) if kind is MonitorKind.OPERATION else None


def result_url(update: JobUpdate, monitor: Monitor, answer: Answered) -> str | None:
    """Return the URL of a completed operation's result; None if the document has the result."""
    document: Mapping[str, Any] = update.document
    if monitor.kind is not MonitorKind.OPERATION or "result" in document:
        return None
    location = document.get("resourceLocation")
    if isinstance(location, str) and location:
        return _joined(answer, location)
    return monitor.result


def read_result(answer: Answered) -> Any:
    """Read a result that has a URL of its own: JSON, else text or bytes."""
    _require_job(answer)
    if not 200 <= answer.status < 300:
        raise NotAJob(answer.url, f"{answer.status} instead of a result")
    return _value_of(answer)


def document_of(answer: Answered) -> Any:
    """Parse an answer's JSON; raise `NotJson` if it is not JSON."""
    try:
        return parse_json(answer.body)
    except ValueError:
        content_type = answer.headers.get("content-type", "")
        raise NotJson(answer.url, content_type, answer.body) from None


def problem_of(answer: Answered) -> Any:
    """Parse the JSON of a refusal; return None if it is not JSON."""
    try:
        return parse_json(answer.body)
    except ValueError:
        return None


def _etag_version(answer: Answered) -> int | None:
    return version_of(answer.headers.get("etag"))


def _is_location(answer: Answered) -> bool:
    """Return whether a result URL answered that it has no result, or none yet."""
    code = object_of(problem_of(answer)).get("code")
    return answer.status in {202, 424} or (answer.status == 410 and code == _CANCELLED)


def _read_location(answer: Answered) -> JobUpdate:
    if answer.status == 202:
        pending = problem_of(answer)
        return read_job(pending) or JobUpdate(JobStatus.PROCESSING, document=object_of(pending))
    if 200 <= answer.status < 300:
        value = _value_of(answer)
        resource = read_resource(value)
        if resource is not None and resource.status in _UNSUCCESSFUL:
            return resource
        return JobUpdate(JobStatus.COMPLETED, progress=100, result=value)
    problem = object_of(problem_of(answer))
    if answer.status in {401, 403, 404} or not problem:
        _require_job(answer)
        raise NotAJob(answer.url, f"{answer.status} without an explanation in JSON")
    cancelled = problem.get("code") == _CANCELLED
    return JobUpdate(
        JobStatus.CANCELLED if cancelled else JobStatus.FAILED,
        error=None if cancelled else sentence_of(problem),
        error_code=code_of(problem) or f"http_{answer.status}",
        document=problem,
    )


def _read_resource(answer: Answered) -> JobUpdate:
    document = document_of(answer)
    # Azure: a resource without a state is complete.
    return read_resource(document) or JobUpdate(
        JobStatus.COMPLETED, progress=100, result=document, document=object_of(document)
    )


def _require_job(answer: Answered) -> None:
    if answer.status in {401, 403}:
        raise AccessRefused(answer.url, answer.status)
    if answer.status in {404, 410}:
        raise JobNotFound(answer.url, f"{answer.status}: {sentence_of(problem_of(answer))}")


def _value_of(answer: Answered) -> Any:
    content_type = answer.headers.get("content-type", "")
    if not answer.body:
        return None
    if _JSON.match(content_type):
        return document_of(answer)
    if content_type.startswith(("text/html", "application/xhtml")):
        raise NotJson(answer.url, content_type, answer.body)
    if content_type.startswith("text/"):
        return answer.body.decode("utf-8", "replace")
    if not content_type:
        # RFC 9110, section 8.3: without a Content-Type the client may examine the data.
        with suppress(ValueError):
            return parse_json(answer.body)
    return answer.body

"""What one answer of a status monitor means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from asyncjobs.client.documents import JobUpdate, object_of, read_job, read_operation
from asyncjobs.client.errors import AccessRefused, JobNotFound, NotAJob, NotJson, sentence_of
from asyncjobs.client.exchange import Answered
from asyncjobs.client.monitors import Kind, document_of, problem_of, recognise
from asyncjobs.client.pace import told_pause
from asyncjobs.core.status import JobStatus

# Proxies that compress make the strong ETag a weak one; the number stays.
_VERSION = re.compile(r'(?:W/)?"?([0-9]{1,18})"?')
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json\b", re.IGNORECASE)
#: RFC 9110: what may be otherwise when it is asked again. 501 and 505 will not.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: What a server of ours answers for the result of a cancelled job.
_CANCELLED = "job_cancelled"


@dataclass(frozen=True)
class Trouble:
    """The server cannot answer now; `pause` is when it asks to be tried again, in seconds."""

    reason: str
    pause: float | None


def trouble_of(answer: Answered) -> Trouble | None:
    """Tell whether the same request may succeed later."""
    if answer.status not in _PASSING and not 520 <= answer.status <= 599:
        return None
    return Trouble(f"it answers {answer.status}", told_pause(answer.headers))


def version_of(text: str | None) -> int | None:
    """Read the version in an ETag or an event's id; None where it is none of ours."""
    found = _VERSION.fullmatch(text or "")
    return int(found[1]) if found else None


def read_status(answer: Answered, kind: Kind) -> tuple[Kind, JobUpdate]:
    """Read the state of the job, and in whose words it is said.

    Raises what ends the following: `AccessRefused`, `JobNotFound`, `NotJson`, `NotAJob`.
    """
    if kind is Kind.LOCATION or (kind is Kind.UNKNOWN and _speaks_plain_http(answer)):
        return Kind.LOCATION, _read_location(answer)
    _refuse(answer)
    document = document_of(answer)
    version = version_of(answer.headers.get("etag"))
    found = recognise(document, version)
    if kind is Kind.OPERATION:
        operation = read_operation(document, any_word=True)
        found = None if operation is None else (Kind.OPERATION, operation)
    if found is None or not 200 <= answer.status < 300:
        raise NotAJob(answer.url, f"{answer.status} with JSON that is no job's status")
    return found


def _speaks_plain_http(answer: Answered) -> bool:
    """Recognise a URL that will be the result's by its way to say that there is none."""
    code = object_of(problem_of(answer)).get("code")
    return answer.status in {202, 424} or (answer.status == 410 and code == _CANCELLED)


def read_result(answer: Answered) -> Any:
    """Read a result that has a URL of its own: JSON, else text or bytes."""
    _refuse(answer)
    if not 200 <= answer.status < 300:
        raise NotAJob(answer.url, f"{answer.status} instead of a result")
    return _value_of(answer)


def _read_location(answer: Answered) -> JobUpdate:
    if answer.status == 202:
        said = problem_of(answer)
        return read_job(said) or JobUpdate(JobStatus.PROCESSING, document=object_of(said))
    if 200 <= answer.status < 300:
        return JobUpdate(JobStatus.COMPLETED, progress=100, result=_value_of(answer))
    known = object_of(problem_of(answer))
    if answer.status in {401, 403, 404} or not known:
        _refuse(answer)
        raise NotAJob(answer.url, f"{answer.status} without an explanation in JSON")
    cancelled = known.get("code") == _CANCELLED
    return JobUpdate(
        JobStatus.CANCELLED if cancelled else JobStatus.FAILED,
        error=None if cancelled else sentence_of(known),
        error_code=str(known.get("code") or f"http_{answer.status}"),
        document=known,
    )


def _refuse(answer: Answered) -> None:
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
    return answer.body

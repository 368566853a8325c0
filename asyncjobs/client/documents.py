"""Parses the state of a job, as any server describes it, into one value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlsplit

from asyncjobs.core.status import JobStatus

#: The status words of Microsoft's REST API guidelines.
OPERATION_STATUSES: Mapping[str, JobStatus] = {
    "notstarted": JobStatus.PENDING,
    "running": JobStatus.PROCESSING,
    "inprogress": JobStatus.PROCESSING,
    "succeeded": JobStatus.COMPLETED,
    "failed": JobStatus.FAILED,
    "canceled": JobStatus.CANCELLED,
}

# Of a version, and of the size of a file.
_MAX_NUMBER = 10**18


@dataclass(frozen=True)
class RemoteFile:
    """A file that a job has saved; `url` is as the server sent it, often only a path."""

    name: str
    size: int
    url: str
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class JobUpdate:
    """A job as a server described it at one moment.

    `document` is the JSON as received. `version` grows with each change that a client can see; it
    is None if the server sends no version. `progress` is whole percent, None if it is unknown.
    `title`, `tags` and `metadata` are what people see of the job, if the server sends them.
    `batch` has the numbers of a batch's jobs: `total`, those of each status, and `failures`.
    `files` are those that the job has saved so far.

    A job of a newer server may end with a status that this client does not know. Its `status` is
    FAILED then, and `error` names the status unless the server sent an error.
    """

    status: JobStatus
    job_id: str | None = None
    type: str | None = None
    title: str | None = None
    version: int | None = None
    progress: int | None = None
    message: str | None = None
    result: Any = None
    error: str | None = None
    error_code: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    batch: Mapping[str, Any] | None = None
    files: tuple[RemoteFile, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def with_result(self, result: Any) -> JobUpdate:
        """Return the update with a result that was fetched from another URL."""
        return replace(self, result=result)


def read_job(document: Any, version: int | None = None) -> JobUpdate | None:
    """Read a status document of asyncjobs; return None for any other document.

    `version` is the one in the answer's headers; the document's own precedes it.
    """
    known = object_of(document)
    word = known.get("status")
    if not isinstance(known.get("jobId"), str) or not isinstance(word, str):
        return None
    error, code = _text(known.get("error")), _text(known.get("errorCode"))
    try:
        status = JobStatus(word)
    except ValueError:
        if not isinstance(known.get("completedAt"), str):
            return None
        status = JobStatus.FAILED
        error = error or f"The job ended with the status {word!r}, which this client does not know."
        code = code or "unknown_status"
    own = known.get("version")
    numbered = type(own) is int and 0 <= own < _MAX_NUMBER
    return JobUpdate(
        status=status,
        job_id=known["jobId"],
        type=_text(known.get("type")),
        title=_text(known.get("title")),
        version=own if numbered else version,
        progress=_percent(known.get("progress")),
        message=_text(object_of(known.get("detail")).get("message")),
        result=known.get("result"),
        error=error,
        error_code=code,
        tags=_texts(known.get("tags")),
        metadata=object_of(known.get("metadata")),
        batch=object_of(known.get("batch")) or None,
        files=_files(known.get("files")),
        document=known,
    )


def name_of(file: RemoteFile | str) -> str:
    """Return the name of a file, which a caller may give instead of the file."""
    return file if isinstance(file, str) else file.name


def unknown_status(document: Any) -> str | None:
    """Return the status that keeps `read_job` from reading a job of asyncjobs, else None."""
    known = object_of(document)
    word = known.get("status")
    if not isinstance(known.get("jobId"), str) or not isinstance(word, str):
        return None
    return word if read_job(known) is None else None


def read_operation(document: Any, *, any_word: bool) -> JobUpdate | None:
    """Read the resource of a long-running operation; return None for any other document.

    Each service chooses its own words for work in progress. `any_word` accepts unknown words as
    such; set it if the server identified the URL as an operation's.
    """
    known = object_of(document)
    if not isinstance(known.get("status"), str):
        return None
    word = known["status"].lower()
    status = OPERATION_STATUSES.get(word, JobStatus.PROCESSING if any_word else None)
    if status is None:
        return None
    failure = object_of(known.get("error"))
    return JobUpdate(
        status=status,
        job_id=_text(known.get("id")),
        type=_text(known.get("kind")),
        progress=_percent(known.get("percentComplete")),
        result=known.get("result"),
        error=_text(failure.get("message")),
        error_code=code_of(failure),
        document=known,
    )


def read_resource(document: Any) -> JobUpdate | None:
    """Read a resource of Azure, which has its state in `properties.provisioningState`.

    Returns None for any other document. Each service chooses its own words for work in progress.
    """
    known = object_of(document)
    properties = object_of(known.get("properties"))
    word = properties.get("provisioningState")
    if not isinstance(word, str):
        return None
    status = OPERATION_STATUSES.get(word.lower(), JobStatus.PROCESSING)
    failure = object_of(known.get("error")) or object_of(properties.get("error"))
    return JobUpdate(
        status=status,
        result=known if status is JobStatus.COMPLETED else None,
        error=_text(failure.get("message")),
        error_code=code_of(failure),
        document=known,
    )


def parse_json(text: str | bytes) -> Any:
    """Parse JSON (RFC 8259).

    Raises ValueError for any other text (NaN is not JSON), and for JSON that Python cannot read:
    nested too deeply, with an integer of thousands of digits, or with a number beyond a float.
    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is beyond the range of a float")
    return value


def object_of(value: Any) -> dict[str, Any]:
    """Return a JSON object as it is, and an empty object for any other JSON value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def code_of(problem: Any) -> str | None:
    """Return the `code` of a problem or failure, a string or a number; None if it has none."""
    code = object_of(problem).get("code")
    return str(code) if isinstance(code, str) or type(code) is int else None


def _text(value: Any) -> str | None:
    # A lone surrogate is legal in JSON and cannot be printed.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    texts = (_text(one) for one in cast("Sequence[Any]", value))
    return tuple(text for text in texts if text is not None)


def _files(value: Any) -> tuple[RemoteFile, ...]:
    if not isinstance(value, list):
        return ()
    files = (_file(object_of(one)) for one in cast("Sequence[Any]", value))
    return tuple(file for file in files if file is not None)


def _file(known: Mapping[str, Any]) -> RemoteFile | None:
    name, url, size = _text(known.get("name")), _text(known.get("url")), known.get("size")
    if not name or not url or type(size) is not int or not 0 <= size < _MAX_NUMBER:
        return None
    try:
        urlsplit(url)
    except ValueError:
        return None
    kind = _text(known.get("mediaType")) or RemoteFile.media_type
    return RemoteFile(name, size, url, kind)


def _percent(value: Any) -> int | None:
    # `math.isfinite` raises OverflowError for an integer beyond the range of a float.
    if type(value) is not int and not (isinstance(value, float) and math.isfinite(value)):
        return None
    return int(max(0, min(100, value)))

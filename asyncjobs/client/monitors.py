"""Where a submission's answer says that the job is to be followed, whoever's server it is."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urljoin, urlsplit

from asyncjobs.client.documents import JobUpdate, object_of, read_job, read_operation
from asyncjobs.client.errors import ForeignUrl, NotAJob, NotJson
from asyncjobs.client.exchange import Answered
from asyncjobs.client.pace import told_pause

_MONITOR = re.compile(r"""<([^>]*)>[^,]*?;\s*rel="?monitor"?(?:\s*[;,]|\s*$)""", re.IGNORECASE)
_OPERATION = ("operation-location", "azure-asyncoperation")
_PUTS = frozenset({"PUT", "PATCH"})
_PORTS = {"http": 80, "https": 443}


class Kind(StrEnum):
    """Which language a status monitor speaks."""

    JOB = "job"  # asyncjobs
    OPERATION = "operation"  # Microsoft's guidelines: 200, and a word for the state
    LOCATION = "location"  # plain HTTP: 202 until there is the result
    UNKNOWN = "unknown"  # its first answer will tell


@dataclass(frozen=True)
class Monitor:
    """The URLs of one job. `result` is where an operation's result is, unless it says it itself."""

    status: str
    kind: Kind = Kind.UNKNOWN
    events: str | None = None
    result: str | None = None
    cancel: str | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class Accepted:
    """What a submission has led to; `update` is there where the job has ended already.

    `pause` is for how many seconds the server is not to be polled.
    """

    monitor: Monitor
    update: JobUpdate | None = None
    pause: float = 0.0


def read_accepted(
    answer: Answered, origins: Collection[str] = (), *, method: str = "POST"
) -> Accepted:
    """Find the job in the answer to a submission by that method.

    Raises `NotAJob` where there is none, `ForeignUrl` where it is followed at an origin other than
    the one that was asked and `origins`.
    """
    monitor = _monitor_of(answer, method)
    document = document_of(answer) if answer.status == 200 else None
    update = read_job(document)
    if monitor is None:
        if update is None:
            raise NotAJob(answer.url, f"{answer.status} that names no status monitor")
        return Accepted(Monitor(answer.url, Kind.JOB, job_id=update.job_id), update)
    for url in (monitor.status, monitor.events, monitor.result, monitor.cancel):
        require_origin(url, answer.asked, origins)
    ended = update if update is not None and update.status.terminal else None
    return Accepted(monitor, ended, told_pause(answer.headers) or 0.0)


def _monitor_of(answer: Answered, method: str) -> Monitor | None:
    document = object_of(problem_of(answer))
    there = _Urls(answer.url)
    if isinstance(document.get("statusUrl"), str):
        return Monitor(
            status=there.find(document["statusUrl"]) or "",
            kind=Kind.JOB,
            events=there.find(document.get("eventsUrl")),
            cancel=there.find(document.get("cancelUrl")),
            job_id=document["jobId"] if isinstance(document.get("jobId"), str) else None,
        )
    link = _MONITOR.search(answer.headers.get("link", ""))
    if link is not None:
        job = read_job(document)
        kind = Kind.UNKNOWN if job is None else Kind.JOB
        return Monitor(urljoin(answer.url, link[1]), kind, job_id=job.job_id if job else None)
    location = there.find(answer.headers.get("location"))
    # What was put somewhere is there when the operation has succeeded.
    target = answer.asked if method.upper() in _PUTS else None
    for name in _OPERATION:
        if name in answer.headers:
            status = urljoin(answer.url, answer.headers[name])
            return Monitor(status, Kind.OPERATION, result=location or target)
    return Monitor(location, Kind.LOCATION) if location and answer.status == 202 else None


@dataclass(frozen=True)
class _Urls:
    base: str

    def find(self, value: Any) -> str | None:
        return urljoin(self.base, value) if isinstance(value, str) and value else None


def events_of(status_url: str, job_id: str) -> str | None:
    """Derive where the events of a job of asyncjobs are; its status document does not say."""
    parts = urlsplit(status_url)
    if not parts.path.endswith(f"/{job_id}"):
        return None
    return parts._replace(path=f"{parts.path}/events", query="", fragment="").geturl()


def require_origin(url: str | None, asked: str, origins: Collection[str]) -> None:
    """Refuse a URL of an origin that the caller has not named; `None` is nowhere."""
    if url is None:
        return
    found = origin_of(url)
    if found != origin_of(asked) and found not in set(map(origin_of, origins)):
        raise ForeignUrl(asked, found)


def origin_of(url: str) -> str:
    """Write the origin of a URL, the usual port spelt out (RFC 6454)."""
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    return f"{parts.scheme}://{parts.hostname or ''}:{port}".lower()


def document_of(answer: Answered) -> Any:
    """Parse an answer's JSON; raises `NotJson`."""
    try:
        return json.loads(answer.body)
    except ValueError:
        content_type = answer.headers.get("content-type", "")
        raise NotJson(answer.url, content_type, answer.body) from None


def problem_of(answer: Answered) -> Any:
    """Parse the explanation of a refusal, which need not be JSON."""
    try:
        return json.loads(answer.body)
    except ValueError:
        return None


def recognise(document: Any, version: int | None) -> tuple[Kind, JobUpdate] | None:
    """Tell whose status document this is, where nobody has said so before."""
    job = read_job(document, version)
    if job is not None:
        return Kind.JOB, job
    operation = read_operation(document, any_word=False)
    return None if operation is None else (Kind.OPERATION, operation)


def result_url(update: JobUpdate, monitor: Monitor) -> str | None:
    """Return from where a completed operation's result is still to be fetched, if it is."""
    document: Mapping[str, Any] = update.document
    if monitor.kind is not Kind.OPERATION or "result" in document:
        return None
    said = document.get("resourceLocation")
    return urljoin(monitor.status, said) if isinstance(said, str) else monitor.result

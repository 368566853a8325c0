"""A job's outcome as the caller wants it: a value of a type, or an exception."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from inspect import isclass
from typing import Any
from urllib.parse import urlsplit

from asyncjobs.client.documents import JobUpdate, read_job
from asyncjobs.client.errors import JobCancelled, JobFailed, NotAJob, ResultMismatch
from asyncjobs.client.exchange import Answered, Ask
from asyncjobs.client.monitors import Monitor, document_of
from asyncjobs.core.status import JobStatus


def outcome_of(update: JobUpdate, type: Any) -> Any:
    """Return a terminal job's result as that type; raise what it ended by, or `ResultMismatch`."""
    if update.status is JobStatus.FAILED:
        raise JobFailed(update)
    if update.status is JobStatus.CANCELLED:
        raise JobCancelled(update)
    return update.result if type is None else _validated(update.result, type)


def submission_of(
    method: str, url: str, json: Any, headers: Mapping[str, str] | None, key: str | None
) -> Ask:
    """Write the request that submits a job.

    It has an `Idempotency-Key`, made up where the caller gives none: without one, a submission
    whose answer was lost could not be sent again.
    """
    sent = {"accept": "application/json", **{k.lower(): v for k, v in (headers or {}).items()}}
    if key is not None or "idempotency-key" not in sent:
        sent["idempotency-key"] = str(uuid.uuid4()) if key is None else key
    return Ask(method, url, sent, json)


def cancel_of(monitor: Monitor) -> Ask:
    """Write the request that asks a job to stop."""
    parts = urlsplit(monitor.status)
    derived = parts._replace(path=f"{parts.path}/cancel").geturl()
    return Ask("POST", monitor.cancel or derived, {"accept": "application/json"})


def cancelled_of(answer: Answered) -> JobUpdate:
    """Read the answer to a cancel."""
    update = read_job(document_of(answer))
    if update is None:
        raise NotAJob(answer.url, f"{answer.status} with JSON that is no job's status")
    return update


def _validated(result: Any, type: Any) -> Any:
    # pydantic takes as long to load as the rest of the client, and not everybody asks for a type.
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    try:
        if isinstance(result, bytes):
            return TypeAdapter(type).validate_python(result, strict=True)
        return TypeAdapter(type).validate_json(json.dumps(result))
    except (ValidationError, TypeError) as error:
        name = type.__name__ if isclass(type) else str(type)
        raise ResultMismatch(name, result, str(error)) from error

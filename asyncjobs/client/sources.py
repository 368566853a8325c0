"""Reads what names a job that another program has submitted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from asyncjobs.client.answers import Monitor, MonitorKind, SubmittedJob, require_origin
from asyncjobs.client.documents import read_job
from asyncjobs.client.tokens import ISSUER, checked_token, claims_of, token_in


class JobModel(Protocol):
    """A document as a model of pydantic, such as `AcceptedDocument`."""

    def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, Any]:
        """Return the document as a dict."""
        ...


#: What names a job: its status URL, or the document of the answer to its submission.
JobSource = str | Mapping[str, Any] | JobModel


def read_source(
    source: JobSource,
    absolute: Callable[[str], str],
    origins: Collection[str] = (),
    *,
    token: str | None = None,
    token_url: str | None = None,
) -> SubmittedJob:
    """Return the job that a source names, opened by a token if there is one.

    The token is that of the caller, else of the document, else of the link `statusUrl?token=...`.
    Raises `TypeError` or `ValueError` for what names no job and what is no token, and `ForeignUrl`
    as `read_submission`.
    """
    document = _document_in(source)
    address = _status_in(document)
    if address is None:
        raise ValueError("The document has no `statusUrl`: it is not the answer to a submission.")
    status, linked = _without_token(absolute(address))
    job_id = document.get("jobId")

    def joined(name: str) -> str | None:
        url = document.get(name)
        return urljoin(status, url) if isinstance(url, str) and url else None

    kind = MonitorKind.JOB if isinstance(job_id, str) else MonitorKind.UNKNOWN
    renewal = joined("tokenUrl") if token_url is None else urljoin(status, token_url)
    given = {**document} if token is None else {"token": checked_token(token)}
    if linked is not None:
        given.setdefault("token", linked)
    has_token = isinstance(given.get("token"), str)
    monitor = Monitor(
        status,
        kind,
        events=joined("eventsUrl"),
        cancel=joined("cancelUrl"),
        job_id=job_id if isinstance(job_id, str) else None,
        token=token_in(given, renewal or _below(status, "/token")) if has_token else None,
    )
    for url in (monitor.events, monitor.cancel, renewal):
        require_origin(url, status, origins)
    update = read_job(document) if "result" in document else None
    return SubmittedJob(monitor, update if update is not None and update.status.terminal else None)


def _document_in(source: JobSource) -> Mapping[str, Any]:
    if isinstance(source, str):
        return {"statusUrl": source}
    if isinstance(source, Mapping):
        return dict(source)
    if hasattr(source, "model_dump"):
        return source.model_dump(mode="json", by_alias=True)
    raise TypeError(
        f"Give a status URL, or the document of the 202 as a dict, got {type(source).__name__}."
    )


def _status_in(document: Mapping[str, Any]) -> str | None:
    """Return the status URL in a document; that of a job that ended at once has only `tokenUrl`."""
    url, renewal, job_id = (document.get(name) for name in ("statusUrl", "tokenUrl", "jobId"))
    if isinstance(url, str) and url:
        return url
    if isinstance(renewal, str) and renewal.endswith(f"/{job_id}/token"):
        return renewal.removesuffix("/token")
    return None


def _without_token(url: str) -> tuple[str, str | None]:
    """Return a URL without its parameter `token`, and that; one of another service stays."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url, None
    kept, found = list[str](), None
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if name == "token" and claims_of(unquote(value)).get("iss") == ISSUER:
            found = unquote(value)
        else:
            kept.append(pair)
    return (url, None) if found is None else (parts._replace(query="&".join(kept)).geturl(), found)


def _below(url: str, path: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path}{path}", fragment="").geturl()

"""Prints jobs: JSON documents for programs, tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Annotated, Any, assert_never

import click
from pydantic_core import to_json, to_jsonable_python
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncjobs.core.job import AttemptError, Delivery, Job, JobId, JobStatus
from asyncjobs.core.printable import plain
from asyncjobs.http.documents import BatchDocument, From, JobDocument

# Without a terminal, rows are not wrapped: other programs read them line by line.
_UNLIMITED_WIDTH = 10_000

# The columns that may be wrapped.
_FOLDED = ("", "title", "owner", "error", "found", "advice")

#: The members of a job in a list, by their JSON names, in order.
_LISTED = (
    "jobId",
    "type",
    "title",
    "status",
    "progress",
    "userId",
    "queue",
    "error",
    "errorCode",
    "attempt",
    "createdAt",
    "startedAt",
    "completedAt",
    "batchId",
    "tags",
    "metadata",
)


class OperatorDocument(JobDocument):
    """A job with everything for operators except payload and result."""

    user_id: str | None
    idempotency_key: str | None
    retry_of: JobId | None
    scheduled_at: datetime | None
    queue: str
    delivery: Delivery
    failures: int
    losses: int
    releases: int
    worker: Annotated[str | None, From(lambda job: job.lease and job.lease.worker)]
    lease_until: Annotated[datetime | None, From(lambda job: job.lease and job.lease.until)]
    run_at: datetime
    deadline: datetime
    expires_at: datetime | None
    timeout: Annotated[float | None, From(lambda job: _seconds(job.timeout))]
    retention: Annotated[float | None, From(lambda job: _seconds(job.retention))]
    max_attempts: Annotated[int, From(attrgetter("retry.max_attempts"))]
    max_deliveries: int
    traceparent: str | None
    revision: int


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def job_document(job: Job) -> dict[str, Any]:
    """Return the members of an `OperatorDocument` except the result."""
    return {**OperatorDocument.members(job), "metadata": job.metadata}


def attempt_error_document(error: AttemptError) -> dict[str, Any]:
    """Return the document of an attempt's error."""
    return {
        "attempt": error.attempt,
        "at": error.at,
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
    }


def listed_document(job: Job) -> dict[str, Any]:
    """Return the shorter document of a job in a list."""
    document = job_document(job)
    return {name: document[name] for name in _LISTED if name in document}


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document; without indent it is one line."""
    click.echo(to_json(document, indent=indent))


def console() -> Console:
    """Return a console on standard output, with colours and a width only on a terminal."""
    width = None if sys.stdout.isatty() else _UNLIMITED_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def colour_of(status: JobStatus) -> str:
    """Return the colour of a status on a terminal."""
    match status:
        case JobStatus.PENDING:
            return "yellow"
        case JobStatus.PROCESSING:
            return "blue"
        case JobStatus.COMPLETED:
            return "green"
        case JobStatus.FAILED:
            return "red"
        case JobStatus.CANCELLED:
            return "magenta"
        case _:
            assert_never(status)


def print_table(jobs: Sequence[Job], now: datetime) -> None:
    """Print one line for each job; titles have a column if there are any."""
    titled = any(job.title for job in jobs)
    titles = ["title"] if titled else []
    table = _table("id", "type", *titles, "status", "progress", "age", "owner", "error")
    for job in jobs:
        table.add_row(
            job.id,
            plain(job.type),
            *([plain(job.title or "")] if titled else []),
            Text(job.status, colour_of(job.status)),
            f"{job.progress}%",
            age(now - job.created_at),
            plain(job.user_id or ""),
            plain(job.error.message if job.error else ""),
        )
    _print(table)


def print_sheet(document: dict[str, Any]) -> None:
    """Print one job, a line for each member that has a value."""
    table = _table("", "")
    table.show_header = False
    members: dict[str, Any] = to_jsonable_python(document)
    for name, value in members.items():
        if value not in (None, [], {}):
            text = value if isinstance(value, str) else to_json(value).decode()
            table.add_row(name, plain(text))
    _print(table)


def print_batch(job: Job) -> None:
    """Print the numbers of a batch's jobs, and the first that failed."""
    document: BatchDocument = job_document(job)["batch"]
    failures = document["failures"]
    rows = [("id", job.id), ("status", job.status.value), ("progress", f"{job.progress}%")]
    rows += [(name, str(number)) for name, number in document.items() if name != "failures"]
    print_rows(("", ""), rows)
    if failures:
        click.echo()
        print_rows(
            ("failed job", "error"), [(failure["jobId"], failure["error"]) for failure in failures]
        )


def print_attempt_errors(errors: Iterable[AttemptError]) -> None:
    """Print the errors of the attempts, the newest last, with their tracebacks indented."""
    for error in errors:
        message = plain(f"{error.type}: {error.message}" if error.message else error.type)
        click.echo(f"\nattempt {error.attempt}, {error.at:%Y-%m-%d %H:%M:%S} UTC: {message}")
        for line in error.traceback.splitlines():
            click.echo(f"    {plain(line)}".rstrip())


def print_rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a plain table."""
    table = _table(*heads)
    for row in rows:
        table.add_row(*map(plain, row))
    _print(table)


def age(duration: timedelta) -> str:
    """Return a duration in its largest unit: `5s`, `12m`, `3h`, `2d`."""
    seconds = max(0, int(duration.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _print(table: Table) -> None:
    out = console()
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    # Cells are padded with spaces; the last one needs none.
    lines = captured.get().splitlines()
    click.echo("\n".join(line.rstrip() for line in lines))


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        # On a narrow terminal, free text is wrapped; an id must stay whole.
        table.add_column(head, no_wrap=head not in _FOLDED, overflow="fold")
    return table

"""How jobs are shown: as documents for programs, as tables and sheets for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import click
from pydantic_core import to_json, to_jsonable_python
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncjobs.core.job import Job, JobStatus

# Where no terminal sets a width, rows are not broken: other programs read them by the line.
_ENDLESS = 10_000

# What may be long.
_FOLDED = ("", "owner", "error", "found", "advice")

COLOURS = {
    JobStatus.PENDING: "yellow",
    JobStatus.PROCESSING: "blue",
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "magenta",
}

#: What both a list and a sheet have of a job, by the names of the wire, in their order.
_LISTED = (
    "jobId",
    "type",
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
)


def job_document(job: Job) -> dict[str, Any]:
    """Make the document of a job, with all that operators may want but payload and result."""
    error = job.error
    return {
        "jobId": job.id,
        "type": job.type,
        "status": job.status,
        "progress": job.progress,
        "detail": job.detail,
        "error": error.message if error else None,
        "errorCode": error.code if error else None,
        "userId": job.user_id,
        "idempotencyKey": job.idempotency_key,
        "retryOf": job.retry_of,
        "queue": job.queue,
        "delivery": job.delivery,
        "attempt": job.attempt,
        "failures": job.failures,
        "losses": job.losses,
        "worker": job.lease.worker if job.lease else None,
        "leaseUntil": job.lease.until if job.lease else None,
        "createdAt": job.created_at,
        "runAt": job.run_at,
        "startedAt": job.started_at,
        "completedAt": job.completed_at,
        "cancelRequestedAt": job.cancel_requested_at,
        "deadline": job.deadline,
        "expiresAt": job.expires_at,
        "timeout": _seconds(job.timeout),
        "retention": _seconds(job.retention),
        "estimatedDuration": _seconds(job.estimated_duration),
        "maxAttempts": job.retry.max_attempts,
        "maxDeliveries": job.max_deliveries,
        "traceId": job.trace_id,
        "traceparent": job.traceparent,
        "version": job.version,
        "revision": job.revision,
    }


def listed_document(job: Job) -> dict[str, Any]:
    """Make the shorter document of a job in a list."""
    whole = job_document(job)
    return {name: whole[name] for name in _LISTED}


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document; without indent it is one line."""
    click.echo(to_json(document, indent=indent))


def console() -> Console:
    """Make the console of data: colours and width as the terminal has them, none without one."""
    width = None if sys.stdout.isatty() else _ENDLESS
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def print_table(jobs: Iterable[Job], now: datetime) -> None:
    """Print one line for each job."""
    table = _table("id", "type", "status", "progress", "age", "owner", "error")
    for job in jobs:
        table.add_row(
            job.id,
            plain(job.type),
            Text(job.status, COLOURS[job.status]),
            f"{job.progress}%",
            age(now - job.created_at),
            plain(job.user_id or ""),
            plain(job.error.message if job.error else ""),
        )
    _print(table)


def print_sheet(document: dict[str, Any]) -> None:
    """Print what is known of one job, a line for each member that has a value."""
    table = _table("", "")
    table.show_header = False
    written: dict[str, Any] = to_jsonable_python(document)
    for name, value in written.items():
        if value is not None:
            text = value if isinstance(value, str) else to_json(value).decode()
            table.add_row(name, plain(text))
    _print(table)


def print_rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a plain table."""
    table = _table(*heads)
    for row in rows:
        table.add_row(*row)
    _print(table)


def age(duration: timedelta) -> str:
    """Tell a duration in its largest unit: `5s`, `12m`, `3h`, `2d`."""
    seconds = max(0, int(duration.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def plain(text: str) -> str:
    """Make one harmless line of what users wrote: escape sequences would reach the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _print(table: Table) -> None:
    out = console()
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    # Cells are filled up with spaces, the last one in vain.
    lines = captured.get().splitlines()
    click.echo("\n".join(line.rstrip() for line in lines))


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        # Where a terminal is narrow, what users wrote is folded; an id must stay whole.
        table.add_column(head, no_wrap=head not in _FOLDED, overflow="fold")
    return table


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()

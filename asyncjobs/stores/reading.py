"""Decodes rows, some of which may be unreadable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from asyncjobs.core.job import Job
from asyncjobs.errors import UnreadableJob
from asyncjobs.records.logging import log

R = TypeVar("R")


def readable(rows: Iterable[R], read: Callable[[R], Job]) -> list[Job]:
    """Decode the jobs of some rows; log and omit the rows that cannot be decoded."""
    jobs: list[Job] = []
    for row in rows:
        try:
            jobs.append(read(row))
        except UnreadableJob as error:
            log.error("%s", error, extra={"job_id": error.job_id})  # noqa: TRY400  # no traceback
    return jobs

"""Reads rows of which some may not be readable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from asyncjobs.core.job import Job
from asyncjobs.errors import UnreadableJob
from asyncjobs.records.logging import log

R = TypeVar("R")


def readable(rows: Iterable[R], read: Callable[[R], Job]) -> list[Job]:
    """Read the jobs of some rows; log those that cannot be read, and leave them out."""
    jobs: list[Job] = []
    for row in rows:
        try:
            jobs.append(read(row))
        except UnreadableJob as error:
            log.error("%s", error, extra={"job_id": error.job_id})  # noqa: TRY400  # no traceback
    return jobs

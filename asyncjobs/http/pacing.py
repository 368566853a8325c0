"""How soon a client should ask again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from asyncjobs.model import Job, JobStatus


@dataclass(frozen=True)
class Pacing:
    """The bounds of `Retry-After`, in whole seconds."""

    least: int = 2
    most: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"Pacing needs 1 <= least <= most, got {self.least} and {self.most}.")


# Asking about ten times during a job's life tells its progress well enough.
_POLLS_PER_JOB = 10


def retry_after(job: Job, now: datetime, pacing: Pacing, expected: timedelta | None) -> int | None:
    """Say in how many seconds to ask again; None for a job that is terminal.

    `expected` is how long jobs of its type take. One that is known to begin later is left alone
    until then; one that runs tells by its progress how much is left.
    """
    if job.status.terminal:
        return None
    if job.status is JobStatus.PENDING and job.run_at > now:
        pause = job.run_at - now
    else:
        whole, left = _duration(job, now, expected or timedelta(0))
        pause = min(whole / _POLLS_PER_JOB, left)
    return min(pacing.most, max(pacing.least, ceil(pause.total_seconds())))


def _duration(job: Job, now: datetime, expected: timedelta) -> tuple[timedelta, timedelta]:
    """Return how long a job takes as a whole, and from now on."""
    if job.status is not JobStatus.PROCESSING or job.started_at is None:
        return expected, expected
    elapsed = max(now - job.started_at, timedelta(0))
    whole = elapsed * 100 / job.progress if job.progress else max(expected, elapsed)
    # One that takes longer than expected may take longer still.
    return whole, whole - elapsed or whole

"""How soon a client should ask again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from asyncjobs.model import Job


@dataclass(frozen=True)
class Pacing:
    """The bounds of `Retry-After`, in whole seconds."""

    least: int = 2
    most: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"Pacing needs 1 <= least <= most, got {self.least} and {self.most}.")


# Asking about ten times during a job's expected life tells its progress well enough.
_POLLS_PER_JOB = 10


def retry_after(job: Job, now: datetime, pacing: Pacing) -> int:
    """Say in how many seconds to ask again; a job known to begin later is left alone until then."""
    if job.started_at is None and job.run_at > now:
        return min(pacing.most, max(pacing.least, ceil((job.run_at - now).total_seconds())))
    expected = job.estimated_duration or timedelta(0)
    return min(pacing.most, max(pacing.least, ceil(expected.total_seconds() / _POLLS_PER_JOB)))

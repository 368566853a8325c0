"""The status of a job: the enumeration that servers and clients share."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import assert_never


class JobStatus(StrEnum):
    """The status of a job, with the names used in responses."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @cached_property
    def terminal(self) -> bool:
        """Whether the job has ended, so its status is final."""
        match self:
            case JobStatus.PENDING | JobStatus.PROCESSING:
                return False
            case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
                return True
            case _:
                assert_never(self)

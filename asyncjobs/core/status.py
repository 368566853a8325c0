"""Where a job is: the one enumeration that servers and clients share."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import assert_never


class JobStatus(StrEnum):
    """Where a job is; the words are those of the wire."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @cached_property
    def terminal(self) -> bool:
        """Whether nothing will change any more."""
        match self:
            case JobStatus.PENDING | JobStatus.PROCESSING:
                return False
            case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
                return True
            case _:
                assert_never(self)

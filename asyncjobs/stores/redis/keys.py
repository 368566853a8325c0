"""What the Redis store calls its keys.

All keys share one hash tag, the namespace in braces, so they lie in one slot of a cluster.
"""

from __future__ import annotations

from asyncjobs.core.job import JobId


class Keys:
    """The names of a namespace's keys."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"{{{namespace}}}:"
        #: The version of this layout.
        self.schema = f"{self.prefix}schema"
        #: Counts insertions. It and `schema` stay when every job is deleted.
        self.sequence = f"{self.prefix}sequence"
        #: A hash from idempotency key, with owner and type (the trace), to job id.
        self.held = f"{self.prefix}held"
        #: A sorted set of all ids, by order of insertion.
        self.all = f"{self.prefix}all"
        #: The channel on which ids of changed jobs are published.
        self.changes = f"{self.prefix}changes"

    def job(self, job_id: JobId | str) -> str:
        """Name the hash that is the job."""
        return f"{self.prefix}job:{job_id}"

    def due(self, lane: str) -> str:
        """Name the sorted set of what is due in a lane.

        Its scores are microseconds, which a double holds exactly up to the year 2255. Its members
        are the order of insertion, in 16 digits, so that ties go in that order; the id; and behind
        a space the job's trace: owner, type and idempotency key, by which all else that names the
        job is found when its hash has expired. A job's hash has its member as `entry`.
        """
        return f"{self.prefix}due:{lane}"

    def owned(self, owner: str) -> str:
        """Name the sorted set of an owner's ids, by order of insertion."""
        return f"{self.prefix}owner:{owner}"

    def completed(self, type: str) -> str:
        """Name the sorted set of a type's completed ids, by order of insertion."""
        return f"{self.prefix}completed:{type}"

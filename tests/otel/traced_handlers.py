"""A handler with `run_in="process"`, imported from here by its process."""

from __future__ import annotations

from asyncjobs import AsyncJobs, JobContext

kinds = AsyncJobs("memory://")


@kinds.handler("traceparent", run_in="process")
def traceparent(_payload: None, job: JobContext) -> str | None:
    return job.traceparent

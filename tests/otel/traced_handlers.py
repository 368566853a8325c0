"""A handler with `run_in="process"`, in a module that its process can import."""

from __future__ import annotations

from asyncjobs import AsyncJobs, JobContext

kinds = AsyncJobs("memory://")


@kinds.handler("traceparent", run_in="process")
def traceparent(_payload: None, job: JobContext) -> str | None:
    return job.traceparent

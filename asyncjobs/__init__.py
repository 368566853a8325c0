"""202 Accepted for every operation that takes too long for a request.

This module exports names. It imports no driver and no framework, and each name only when it is
used: client programs import `asyncjobs.client` without a server. Errors are in `asyncjobs.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncjobs.core.events import Event, Transition
    from asyncjobs.core.handlers import Handler, JobType
    from asyncjobs.core.job import (
        BatchCounts,
        BatchFailure,
        Detail,
        Job,
        JobError,
        JobId,
        JobStatus,
        Policy,
        Progress,
        Retry,
    )
    from asyncjobs.core.output import OutputItem
    from asyncjobs.core.schedules import Schedule
    from asyncjobs.core.submission import Batch, EnqueueOptions
    from asyncjobs.declarations import handler
    from asyncjobs.dispatchers.local import LocalDispatcher
    from asyncjobs.dispatchers.worker import WorkerDispatcher
    from asyncjobs.errors import AsyncJobsError, JobCancelled, JobFailed
    from asyncjobs.execution.context import JobContext
    from asyncjobs.handles import BatchHandle
    from asyncjobs.http.headers import Pacing
    from asyncjobs.http.mounts import MountOptions
    from asyncjobs.http.security import PollLimit
    from asyncjobs.http.tokens import Tokens
    from asyncjobs.protocols import Dispatcher, JobHandle, JobQueue, Page, Selection, Store
    from asyncjobs.queue import AsyncJobs
    from asyncjobs.records.logging import JobLogFilter, job_log_fields
    from asyncjobs.settings import Settings

__all__ = [
    "AsyncJobs",
    "AsyncJobsError",
    "Batch",
    "BatchCounts",
    "BatchFailure",
    "BatchHandle",
    "Detail",
    "Dispatcher",
    "EnqueueOptions",
    "Event",
    "Handler",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobError",
    "JobFailed",
    "JobHandle",
    "JobId",
    "JobLogFilter",
    "JobQueue",
    "JobStatus",
    "JobType",
    "LocalDispatcher",
    "MountOptions",
    "OutputItem",
    "Pacing",
    "Page",
    "Policy",
    "PollLimit",
    "Progress",
    "Retry",
    "Schedule",
    "Selection",
    "Settings",
    "Store",
    "Tokens",
    "Transition",
    "WorkerDispatcher",
    "handler",
    "job_log_fields",
]

_MODULES = {
    "AsyncJobs": "queue",
    "AsyncJobsError": "errors",
    "Batch": "core.submission",
    "BatchCounts": "core.job",
    "BatchFailure": "core.job",
    "BatchHandle": "handles",
    "Detail": "core.job",
    "Dispatcher": "protocols",
    "EnqueueOptions": "core.submission",
    "Event": "core.events",
    "Handler": "core.handlers",
    "Job": "core.job",
    "JobCancelled": "errors",
    "JobContext": "execution.context",
    "JobError": "core.job",
    "JobFailed": "errors",
    "JobHandle": "protocols",
    "JobId": "core.job",
    "JobLogFilter": "records.logging",
    "JobQueue": "protocols",
    "JobStatus": "core.job",
    "JobType": "core.handlers",
    "LocalDispatcher": "dispatchers.local",
    "MountOptions": "http.mounts",
    "OutputItem": "core.output",
    "Pacing": "http.headers",
    "Page": "protocols",
    "Policy": "core.job",
    "PollLimit": "http.security",
    "Progress": "core.job",
    "Retry": "core.job",
    "Schedule": "core.schedules",
    "Selection": "protocols",
    "Settings": "settings",
    "Store": "protocols",
    "Tokens": "http.tokens",
    "Transition": "core.events",
    "WorkerDispatcher": "dispatchers.worker",
    "handler": "declarations",
    "job_log_fields": "records.logging",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

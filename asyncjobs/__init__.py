"""202 Accepted for every operation that takes too long for a request.

This module names things; it loads no driver and no framework, and each name only when it is used:
`asyncjobs.client` is imported by programs that have no server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncjobs.core.events import Event, Transition
    from asyncjobs.core.handlers import Handler, JobType
    from asyncjobs.core.job import (
        Detail,
        Job,
        JobError,
        JobId,
        JobStatus,
        Policy,
        Progress,
        Retry,
    )
    from asyncjobs.core.submission import EnqueueOptions
    from asyncjobs.errors import (
        AsyncJobsError,
        ConfigurationError,
        CrossSite,
        FieldIssue,
        IdempotencyConflict,
        IllegalMove,
        InvalidCallback,
        InvalidIdempotencyKey,
        InvalidPayload,
        InvalidQuery,
        InvalidResult,
        JobCancelled,
        JobFailed,
        LostLease,
        NotOpen,
        PayloadTooLarge,
        RequestRejected,
        SchemaError,
        StoreError,
        StoreUnavailable,
        TooManyPolls,
        UnknownJob,
        UnknownType,
        UnreadableJob,
        UnusableConnection,
    )
    from asyncjobs.execution.context import JobContext
    from asyncjobs.protocols import Dispatcher, JobQueue, Page, Selection, Store
    from asyncjobs.queue import AsyncJobs
    from asyncjobs.records.logging import JobLogFilter, job_log_fields
    from asyncjobs.settings import Settings

__all__ = [
    "AsyncJobs",
    "AsyncJobsError",
    "ConfigurationError",
    "CrossSite",
    "Detail",
    "Dispatcher",
    "EnqueueOptions",
    "Event",
    "FieldIssue",
    "Handler",
    "IdempotencyConflict",
    "IllegalMove",
    "InvalidCallback",
    "InvalidIdempotencyKey",
    "InvalidPayload",
    "InvalidQuery",
    "InvalidResult",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobError",
    "JobFailed",
    "JobId",
    "JobLogFilter",
    "JobQueue",
    "JobStatus",
    "JobType",
    "LostLease",
    "NotOpen",
    "Page",
    "PayloadTooLarge",
    "Policy",
    "Progress",
    "RequestRejected",
    "Retry",
    "SchemaError",
    "Selection",
    "Settings",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "TooManyPolls",
    "Transition",
    "UnknownJob",
    "UnknownType",
    "UnreadableJob",
    "UnusableConnection",
    "job_log_fields",
]

_HOMES = {
    "execution.context": ("JobContext",),
    "errors": (
        "AsyncJobsError",
        "ConfigurationError",
        "CrossSite",
        "FieldIssue",
        "IdempotencyConflict",
        "IllegalMove",
        "InvalidCallback",
        "InvalidIdempotencyKey",
        "InvalidPayload",
        "InvalidQuery",
        "InvalidResult",
        "JobCancelled",
        "JobFailed",
        "LostLease",
        "NotOpen",
        "PayloadTooLarge",
        "RequestRejected",
        "SchemaError",
        "StoreError",
        "StoreUnavailable",
        "TooManyPolls",
        "UnknownJob",
        "UnknownType",
        "UnreadableJob",
        "UnusableConnection",
    ),
    "records.logging": ("JobLogFilter", "job_log_fields"),
    "core.job": (
        "Detail",
        "Job",
        "JobError",
        "JobId",
        "JobStatus",
        "Policy",
        "Progress",
        "Retry",
    ),
    "protocols": (
        "Dispatcher",
        "JobQueue",
        "Page",
        "Selection",
        "Store",
    ),
    "queue": ("AsyncJobs",),
    "core.handlers": (
        "Handler",
        "JobType",
    ),
    "settings": ("Settings",),
    "core.submission": ("EnqueueOptions",),
    "core.events": (
        "Event",
        "Transition",
    ),
}

_MODULES = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

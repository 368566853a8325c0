"""Follow jobs from Python: those of asyncjobs, and of any server that answers 202.

This module names things; it loads no HTTP library before a client is used.
"""

from asyncjobs.client.asynchronous import AsyncJob, AsyncJobsClient, Updates
from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import (
    AccessRefused,
    AnswerTooLarge,
    ClientError,
    ForeignUrl,
    JobCancelled,
    JobEnded,
    JobFailed,
    JobNotFound,
    JobTimeout,
    NotAJob,
    NotJson,
    RedirectLoop,
    RequestRefused,
    ResultMismatch,
    ServerUnreachable,
)
from asyncjobs.client.options import Following, Transport
from asyncjobs.client.sync import Job, JobsClient, follow
from asyncjobs.core.status import JobStatus

__all__ = [
    "AccessRefused",
    "AnswerTooLarge",
    "AsyncJob",
    "AsyncJobsClient",
    "ClientError",
    "Following",
    "ForeignUrl",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "JobNotFound",
    "JobStatus",
    "JobTimeout",
    "JobUpdate",
    "JobsClient",
    "NotAJob",
    "NotJson",
    "RedirectLoop",
    "RequestRefused",
    "ResultMismatch",
    "ServerUnreachable",
    "Transport",
    "Updates",
    "follow",
]

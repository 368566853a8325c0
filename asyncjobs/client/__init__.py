"""A client for jobs of asyncjobs, and of any other server that answers 202.

Importing this package imports no HTTP library.
"""

from asyncjobs.client.asynchronous import AsyncJobsClient, AsyncRemoteJob, Updates
from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import (
    AccessRefused,
    AnswerTooLarge,
    ClientError,
    ForeignUrl,
    JobNotFound,
    JobTimeout,
    NotAJob,
    NotJson,
    RedirectLoop,
    RemoteJobCancelled,
    RemoteJobFailed,
    RemoteJobUnsuccessful,
    RequestRefused,
    ResultMismatch,
    ServerUnreachable,
    UnknownStatus,
)
from asyncjobs.client.follower import Following, Transport
from asyncjobs.client.output import ReceivedItem
from asyncjobs.client.sync import JobsClient, RemoteJob, follow
from asyncjobs.core.status import JobStatus

__all__ = [
    "AccessRefused",
    "AnswerTooLarge",
    "AsyncJobsClient",
    "AsyncRemoteJob",
    "ClientError",
    "Following",
    "ForeignUrl",
    "JobNotFound",
    "JobStatus",
    "JobTimeout",
    "JobUpdate",
    "JobsClient",
    "NotAJob",
    "NotJson",
    "ReceivedItem",
    "RedirectLoop",
    "RemoteJob",
    "RemoteJobCancelled",
    "RemoteJobFailed",
    "RemoteJobUnsuccessful",
    "RequestRefused",
    "ResultMismatch",
    "ServerUnreachable",
    "Transport",
    "UnknownStatus",
    "Updates",
    "follow",
]

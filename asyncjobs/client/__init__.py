"""A client for jobs of asyncjobs, and of any other server that answers 202.

Importing this package imports no HTTP library.
"""

from asyncjobs.client.asynchronous import AsyncJobsClient, AsyncRemoteJob, Updates
from asyncjobs.client.documents import JobUpdate, RemoteFile
from asyncjobs.client.errors import (
    AccessRefused,
    AnswerTooLarge,
    ClientError,
    DownloadFailed,
    DownloadTimeout,
    ForeignUrl,
    JobNotFound,
    JobTimeout,
    NotAJob,
    NotJson,
    RedirectLoop,
    RemoteFileChanged,
    RemoteFileNotFound,
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
    "DownloadFailed",
    "DownloadTimeout",
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
    "RemoteFile",
    "RemoteFileChanged",
    "RemoteFileNotFound",
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

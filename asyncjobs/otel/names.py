"""The names of what is recorded: those of the semantic conventions for messaging, then our own.

A queue is a destination, a job a message, an attempt the processing of one.
"""

from __future__ import annotations

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

#: What stands for anything that is not registered here: metrics must not grow with what comes in.
OTHER = "_OTHER"

SYSTEM = "messaging.system"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
MESSAGE_ID = "messaging.message.id"
ERROR_TYPE = "error.type"

SENT = "messaging.client.sent.messages"
CONSUMED = "messaging.client.consumed.messages"
PROCESSING = "messaging.process.duration"

JOB_TYPE = "asyncjobs.job.type"
ATTEMPT = "asyncjobs.job.attempt"
OUTCOME = "asyncjobs.job.outcome"

ENDED = "asyncjobs.jobs.ended"
WAIT = "asyncjobs.jobs.wait.duration"
RUNNING = "asyncjobs.jobs.running"
OLDEST = "asyncjobs.queue.oldest.age"
LOST = "asyncjobs.workers.lost"
WATCHERS = "asyncjobs.watchers"

EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"

#: What `error.type` is for handlers that were told to stop, among others.
TIMEOUT = "timeout"
SHUTDOWN = "shutdown"

#: What `error.type` may be for a job that has failed; any other code is one of the application's.
CODES = frozenset(
    {
        "deadline_exceeded",
        "internal_error",
        "invalid_payload",
        "invalid_result",
        "timeout",
        "worker_lost",
    }
)
OWN_CODE = "job_failed"

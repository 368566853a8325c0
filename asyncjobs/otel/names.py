"""Names of attributes and metrics: the semantic conventions for messaging, then our own.

In the terms of the conventions a queue is a destination, a job a message, and an attempt the
processing of a message.
"""

from __future__ import annotations

from asyncjobs.core.job import DEFAULT_ERROR_CODE, JOB_ERROR_CODES

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

#: Replaces names that are not registered here, so that clients cannot create metric series.
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

#: Values of `error.type` for handlers that the runtime stopped.
TIMEOUT = "timeout"
SHUTDOWN = "shutdown"

#: Values of `error.type` for a failed job; codes of the application are `APPLICATION_CODE`.
CODES = JOB_ERROR_CODES
APPLICATION_CODE = DEFAULT_ERROR_CODE

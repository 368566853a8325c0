"""The values of a job: frozen, without I/O and without rules.

A job has two halves. The *submission* is written once. Moves change only the *state*, so they never
rewrite wide data. Payload and result are kept as the JSON text they arrived as: they cannot be
changed in place, and a reader can pass them on without parsing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, NewType, Self, cast
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)

from asyncjobs.core.randomness import random_hex
from asyncjobs.core.status import JobStatus as JobStatus  # noqa: PLC0414  # part of what a job is
from asyncjobs.errors import UnreadableJob
from asyncjobs.settings import Seconds

JobId = NewType("JobId", str)

#: The lane of every job that is not waiting for one of our workers. No queue may have this name.
MAINTENANCE_LANE = ""

#: The lane of every finished job whose callback URL must still be called. Also reserved.
CALLBACKS_LANE = "asyncjobs.callbacks"

DEFAULT_QUEUE = "default"

#: Lanes and types with this prefix belong to the library; no queue may have such a name.
RESERVED_PREFIX = "asyncjobs."

#: The lane of every batch whose jobs have not all ended, and the type of its own job.
BATCHES_LANE = "asyncjobs.batches"
BATCH_TYPE = "asyncjobs.batch"

#: The type of the records of schedules.
SCHEDULE_TYPE = "asyncjobs.schedule"


def suspects_lane(queue: str) -> str:
    """Return the lane of a queue's suspects: jobs that fail if they lose one more worker.

    A process runs one of them at a time: a job that kills its process takes no other suspect along.
    """
    return f"{RESERVED_PREFIX}suspects:{queue}"


def schedule_lane(name: str) -> str:
    """Return the lane of the record of a schedule: processes take from those that they declare."""
    return f"{RESERVED_PREFIX}schedule:{name}"


# uuid4 in the layout of RFC 9562 section 5.4: version nibble 4, variant bits 10.
_JOB_ID = re.compile(r"job_[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_job_id() -> JobId:
    """Return an unguessable id: a random UUID (RFC 9562 section 5.4) with 122 random bits.

    Built by hand because `uuid.uuid4` takes several times as long.
    """
    return job_id_of(random_hex())


def job_id_of(digits: str) -> JobId:
    """Return the id that is made of 32 hexadecimal digits."""
    variant = "89ab"[int(digits[16], 16) & 3]
    tail = f"4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
    return JobId(f"job_{digits[:8]}-{digits[8:12]}-{tail}")


def parse_job_id(text: str) -> JobId | None:
    """Return the text as a job id, or None if it is not a valid one."""
    return JobId(text) if _JOB_ID.fullmatch(text) else None


class Delivery(StrEnum):
    """How a waiting job reaches the code that runs it."""

    PULL = "pull"  # our workers take it from its queue's lane
    PUSH = "push"  # sent to an engine; maintenance sends it again
    EXTERNAL = "external"  # work outside our runner reports by job id
    BATCH = "batch"  # not run: it stands for a batch, and ends when the batch's jobs have ended
    SCHEDULE = "schedule"  # not run: it is the record of a schedule


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Make a value from all its fields without validation; the dict is not copied.

        The constructor takes seven times as long, and every job is rebuilt about ten times in its
        life. A model consists of these four attributes only.
        """
        made = object.__new__(cls)
        _set_values(made, values)
        _set_fields_set(made, _NO_NAMES)
        _set_extra(made, None)
        _set_private(made, None)
        return made

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other values, which are not validated."""
        return self.of({**self.__dict__, **changes})


# Empty for all of them: no code reads which of their fields were given.
_NO_NAMES: set[str] = set()

# `object.__setattr__` looks up each name again, which takes half of the time.
_set_values, _set_fields_set, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)


class Lease(_Value):
    """The right of one attempt to write until `until`, which is renewed while it works."""

    worker: str
    token: str
    until: datetime


#: The error codes that the library itself sets; handlers choose others.
JOB_ERROR_CODES = frozenset(
    {
        "deadline_exceeded",
        "internal_error",
        "invalid_file",
        "invalid_output",
        "invalid_payload",
        "invalid_result",
        "output_too_large",
        "timeout",
        "worker_lost",
    }
)
#: The error codes of batches.
BATCH_ERROR_CODES = frozenset({"batch_failed", "batch_incomplete"})
#: The error code if a handler chooses none.
DEFAULT_ERROR_CODE = "job_failed"


class JobError(_Value):
    """Why a job failed; clients can read it."""

    code: str
    message: str


class AttemptError(_Value):
    """The error that an attempt raised, for operators; never shown to clients.

    Long messages and tracebacks are cut. A process that died leaves no traceback.
    """

    attempt: int
    at: datetime
    type: str
    message: str
    traceback: str = ""


class Detail(_Value):
    """The details of a progress report."""

    message: str | None = None
    current: int | None = None
    total: int | None = None
    unit: str | None = None


class Progress(_Value):
    """How far an attempt has come: whole percent, and details."""

    percent: int = Field(default=0, ge=0, le=100)
    detail: Detail | None = None


#: The longest duration; adding it to a moment never overflows.
LONGEST = timedelta(days=36500)

Duration = Annotated[timedelta, Field(ge=timedelta(0), le=LONGEST)]
SomeTime = Annotated[timedelta, Field(gt=timedelta(0), le=LONGEST)]


def _not_reserved(queue: str) -> str:
    if queue.startswith(RESERVED_PREFIX):
        raise ValueError(f"The queue name {queue!r} is reserved.")
    return queue


class Retry(_Value):
    """How many attempts a job has if they raise, and the delay between them.

    The delay before attempt n+1 is random between 0 and `initial_delay * factor**(n-1)`, at most
    `max_delay` (exponential backoff with full jitter). Delays are seconds or a timedelta.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            max_attempts: int = ...,
            initial_delay: Seconds = ...,
            factor: float = ...,
            max_delay: Seconds = ...,
        ) -> None: ...

    max_attempts: int = Field(default=1, ge=1)
    initial_delay: Duration = timedelta(seconds=1)
    factor: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    max_delay: Duration = timedelta(minutes=5)


class Policy(_Value):
    """The limits of a job; set them on `AsyncJobs` for all handlers, or per handler.

    Durations are seconds or a timedelta. `timeout=None` lets an attempt run until the job's
    deadline, `retention=None` keeps a finished job until it is deleted by hand. `inline_wait` is
    how long a submission over HTTP waits for the job's end before it returns 202. With
    `emit_every`, emitted items are collected for so long before they are stored; 0 stores each of
    them at once.
    """

    if TYPE_CHECKING:

        def __init__(  # noqa: PLR0913  # one parameter per limit
            self,
            *,
            queue: str = ...,
            timeout: Seconds | None = ...,
            deadline: Seconds = ...,
            retention: Seconds | None = ...,
            retry: Retry = ...,
            max_deliveries: int = ...,
            max_releases: int = ...,
            max_payload_bytes: int = ...,
            max_result_bytes: int = ...,
            max_file_bytes: int = ...,
            max_files: int = ...,
            max_output_bytes: int = ...,
            max_output_items: int = ...,
            emit_every: Seconds = ...,
            inline_wait: Seconds = ...,
        ) -> None: ...

    queue: Annotated[str, Field(min_length=1), AfterValidator(_not_reserved)] = DEFAULT_QUEUE
    timeout: SomeTime | None = timedelta(minutes=15)
    deadline: SomeTime = timedelta(hours=24)
    retention: Duration | None = timedelta(hours=24)
    retry: Retry = Retry()
    max_deliveries: int = Field(default=3, ge=1)
    max_releases: int = Field(default=100, ge=1)
    max_payload_bytes: int = Field(default=1024 * 1024, ge=1)
    max_result_bytes: int = Field(default=8 * 1024 * 1024, ge=1)
    max_file_bytes: int = Field(default=10 * 1024**3, ge=1)
    max_files: int = Field(default=100, ge=1)
    max_output_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    max_output_items: int = Field(default=1_000_000, ge=1)
    emit_every: Duration = timedelta(0)
    inline_wait: Duration = timedelta(0)


class Callback(_Value):
    """The progress of the calls to a finished job's callback URL.

    `next_at` is the time of the next call; None once a call succeeded (`told_at`) or the callback
    was given up. `error` is why the latest call failed.
    """

    calls: int = 0
    next_at: datetime | None = None
    told_at: datetime | None = None
    error: str | None = None


class JobFile(_Value):
    """A file that a job has saved; `size` is None until all of its content is stored.

    `key` names the content in the file storage, `digest` is its SHA-256 in hexadecimal.
    """

    name: str
    key: str
    media_type: str = "application/octet-stream"
    size: int | None = None
    digest: str = ""
    attempt: int = 0
    saved_at: datetime | None = None

    @property
    def path(self) -> str:
        """The URL of the file below the prefix of a mount, such as `job_.../files/a.csv`."""
        return f"{self.key.partition('/')[0]}/files/{quote(self.name, safe='')}"


class BatchFailure(_Value):
    """A failed job of a batch, and why it failed."""

    job_id: JobId
    code: str
    message: str


class BatchCounts(_Value):
    """The jobs of a batch by status, and the first that failed.

    `total` is the number of jobs that the batch was given; the other numbers cover stored jobs.
    `grown_at`, for the library, is when `total` or the number of stored jobs last grew.
    """

    total: int = 0
    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    failures: tuple[BatchFailure, ...] = ()
    grown_at: datetime | None = Field(default=None, repr=False)

    @property
    def stored(self) -> int:
        """The number of jobs that were stored."""
        return self.pending + self.processing + self.ended

    @property
    def ended(self) -> int:
        """The number of jobs that have ended."""
        return self.completed + self.failed + self.cancelled


class ScheduleState(_Value):
    """The state of a schedule: its definition, its latest tick and the next one.

    `definition` is the canonical text of what is enqueued and when. `last_job` is the job of the
    tick `last_at`. `enqueuing_since` is set before that job is stored, and None again after it. A
    paused schedule is not due; `next_at` is then its first missed tick.
    """

    definition: str
    paused: bool = False
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_job: JobId | None = None
    enqueuing_since: datetime | None = None


ATTEMPT_ERRORS = TypeAdapter(list[AttemptError])


class Submission(_Value):
    """The half of a job that is written once. `retry_of` is the finished job that it runs again.

    `given_title` and `given_metadata_json` are those of the submission; the handler may change
    them later (`Job.title`, `Job.metadata`). `batch` is the id of the batch to which the job
    belongs. `scheduled_at` is the tick for which a schedule enqueued the job.
    """

    id: JobId
    type: str
    payload_json: bytes = Field(default=b"null", exclude=True)
    retry_of: JobId | None = None
    user_id: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    trace_id: str
    traceparent: str | None = None
    queue: str = DEFAULT_QUEUE
    delivery: Delivery = Delivery.PULL
    retry: Retry = Retry()
    max_deliveries: int = 3
    max_releases: int = 100
    timeout: timedelta | None = None
    deadline: datetime
    retention: timedelta | None = None
    estimated_duration: timedelta | None = None
    callback_url: str | None = None
    given_title: str | None = None
    given_metadata_json: bytes | None = None
    tags: tuple[str, ...] = ()
    batch: JobId | None = None
    scheduled_at: datetime | None = None
    created_at: datetime


class State(_Value):
    """The half of a job that changes. `errors_json` has the errors of its attempts, newest last.

    `new_title` and `new_metadata_json` are set by the handler; None leaves those of the submission.
    `counts` is that of a batch, `schedule` that of the record of a schedule.

    `attempt` counts starts and is the fence a handler may pass on; `failures`, `losses` and
    `releases` count the attempts that raised, lost their worker, and were given back at a shutdown.
    `revision` counts every write and guards the compare-and-swap; `version` counts only changes a
    client can see. `lane` and `due_at` are which loop looks at the job next, and when; None: never.
    """

    status: JobStatus = JobStatus.PENDING
    progress: int = 0
    detail: Detail | None = None
    result_json: bytes | None = Field(default=None, exclude=True)
    errors_json: bytes | None = Field(default=None, exclude=True)
    error: JobError | None = None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    releases: int = 0
    run_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    expires_at: datetime | None = None
    lease: Lease | None = None
    callback: Callback | None = None
    new_title: str | None = None
    new_metadata_json: bytes | None = None
    files: tuple[JobFile, ...] = ()
    counts: BatchCounts | None = None
    schedule: ScheduleState | None = None
    version: int = 1
    revision: int = Field(default=1, exclude=True)
    lane: str = Field(default=MAINTENANCE_LANE, exclude=True)
    due_at: datetime | None = Field(default=None, exclude=True)


# For `Job.updated`; looking up the fields of a class at each call costs as much as the copy.
_SUBMITTED = tuple(Submission.model_fields)
_submission_of = cast("Callable[[Any], tuple[Any, ...]]", itemgetter(*_SUBMITTED))


class Job(Submission, State):
    """One job as it stands at one revision. A new state is a new object."""

    @property
    def payload(self) -> JsonValue:
        """The parsed payload; each access returns a new value."""
        parsed: JsonValue = json.loads(self.payload_json)
        return parsed

    @property
    def result(self) -> JsonValue:
        """The parsed result; None before completion, or if the handler returned None."""
        if self.result_json is None:
            return None
        parsed: JsonValue = json.loads(self.result_json)
        return parsed

    @property
    def title(self) -> str | None:
        """The title that people see; None if the job has none."""
        return self.given_title if self.new_title is None else self.new_title

    @property
    def metadata_json(self) -> bytes | None:
        """The metadata as JSON text; None if the job has none."""
        return (
            self.given_metadata_json if self.new_metadata_json is None else self.new_metadata_json
        )

    @property
    def metadata(self) -> dict[str, JsonValue]:
        """The parsed metadata; each access returns a new value."""
        text = self.metadata_json
        parsed: dict[str, JsonValue] = {} if text is None else json.loads(text)
        return parsed

    @property
    def attempt_errors(self) -> list[AttemptError]:
        """The parsed errors of the attempts, newest last; only the last ones are kept."""
        if self.errors_json is None:
            return []
        try:
            return ATTEMPT_ERRORS.validate_json(self.errors_json)
        except ValidationError as error:
            raise UnreadableJob(self.id) from error

    @property
    def wide_bytes(self) -> int:
        """The size of payload, result and attempt errors in bytes."""
        return len(self.payload_json) + len(self.result_json or b"") + len(self.errors_json or b"")

    def updated(self, newer: Self) -> Self:
        """Return the stored job after the change `newer` is written to this one.

        It has this job's submission and the state of `newer`. A result or errors that are None in
        `newer` stay as they are here.
        """
        mine = self.__dict__
        values = newer.__dict__ | dict(zip(_SUBMITTED, _submission_of(mine), strict=True))
        for name in ("result_json", "errors_json"):
            if values[name] is None:
                values[name] = mine[name]
        return self.of(values)

    def narrow(self) -> Self:
        """Return the job as lists show it: without payload, result and attempt errors."""
        return self.changed(payload_json=b"", result_json=None, errors_json=None)

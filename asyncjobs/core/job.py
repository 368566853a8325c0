"""What a job is: frozen values, no I/O and no rules.

A job has two halves. The *submission* is written once; the *state* is what moves change, so that a
change of state never rewrites wide data. Payload and result are kept as the JSON text they arrived
as: nobody can change them in place, and a reader can pass them on without parsing.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NewType, Self

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

#: The lane of every job that has ended and has still to tell its callback URL. Reserved, too.
CALLBACKS_LANE = "asyncjobs.callbacks"

DEFAULT_QUEUE = "default"

#: Names that begin so are lanes of the library's own; no queue may have one.
RESERVED_PREFIX = "asyncjobs."


def suspects_lane(queue: str) -> str:
    """Return the lane of a queue's suspects: jobs that fail if one more worker is lost with them.

    A process runs one of them at a time, so that a job that kills its process ends alone.
    """
    return f"{RESERVED_PREFIX}suspects:{queue}"


# uuid4 as RFC 9562 section 5.4 lays it out: version nibble 4, variant bits 10.
_JOB_ID = re.compile(r"job_[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_job_id() -> JobId:
    """Make an id that cannot be guessed: a random UUID (RFC 9562 section 5.4), 122 bits of it.

    Spelt out, since `uuid.uuid4` takes several times as long.
    """
    digits = random_hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    tail = f"4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
    return JobId(f"job_{digits[:8]}-{digits[8:12]}-{tail}")


def parse_job_id(text: str) -> JobId | None:
    """Return the text as a job id, or None where no job can have it."""
    return JobId(text) if _JOB_ID.fullmatch(text) else None


class Delivery(StrEnum):
    """How a waiting job gets to those who run it."""

    PULL = "pull"  # our workers take it from its queue's lane
    PUSH = "push"  # an engine is told of it; maintenance tells again
    EXTERNAL = "external"  # work outside our runner reports by job id


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Make a value of all its fields, which are not checked; it keeps the dict.

        The constructor takes seven times as long, and every job is made anew about ten times in its
        life. These four attributes are all that a model consists of.
        """
        made = object.__new__(cls)
        _set_values(made, values)
        _set_fields_set(made, _NO_NAMES)
        _set_extra(made, None)
        _set_private(made, None)
        return made

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other values, which are not checked."""
        return self.of({**self.__dict__, **changes})


# Of no use here: nothing asks which fields were given.
_NO_NAMES: set[str] = set()

# `object.__setattr__` looks each name up again, and that is half of the time.
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
    """The right of one attempt to write, until a moment that is renewed while it works."""

    worker: str
    token: str
    until: datetime


#: The codes that the library itself gives to failed jobs; handlers choose others.
JOB_ERROR_CODES = frozenset(
    {
        "deadline_exceeded",
        "internal_error",
        "invalid_payload",
        "invalid_result",
        "timeout",
        "worker_lost",
    }
)
#: The code of a handler that chooses none.
DEFAULT_ERROR_CODE = "job_failed"


class JobError(_Value):
    """Why a job failed, in words a client may read."""

    code: str
    message: str


class AttemptError(_Value):
    """What an attempt raised, for operators: it is never shown to clients.

    `message` and `traceback` are cut if they are long. A process that died leaves no traceback.
    """

    attempt: int
    at: datetime
    type: str
    message: str
    traceback: str = ""


class Detail(_Value):
    """What a progress figure is made of."""

    message: str | None = None
    current: int | None = None
    total: int | None = None
    unit: str | None = None


class Progress(_Value):
    """How far an attempt has come: whole percent, and what they stand for."""

    percent: int = Field(default=0, ge=0, le=100)
    detail: Detail | None = None


#: No duration is so long that adding it to a moment fails.
LONGEST = timedelta(days=36500)

Duration = Annotated[timedelta, Field(ge=timedelta(0), le=LONGEST)]
SomeTime = Annotated[timedelta, Field(gt=timedelta(0), le=LONGEST)]


def _not_reserved(queue: str) -> str:
    if queue.startswith(RESERVED_PREFIX):
        raise ValueError(f"The queue name {queue!r} is reserved.")
    return queue


class Retry(_Value):
    """How often an attempt that raised is tried again, and after what pause.

    The pause before attempt n+1 is random between 0 and `initial_delay * factor**(n-1)`, at most
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
    """The limits of a job; given on `AsyncJobs` for all, or per handler.

    Durations are seconds or a timedelta. `timeout=None` lets an attempt run up to the job's
    deadline, `retention=None` keeps a finished job until it is deleted by hand. `inline_wait` is
    how long a submission over HTTP waits for the job's end before it answers 202.
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
    inline_wait: Duration = timedelta(0)


class Callback(_Value):
    """How far a job that has ended has come with telling its callback URL.

    `next_at` is when it is called next; None once it was told (`told_at`) or given up. `error` says
    why the latest call did not get through.
    """

    calls: int = 0
    next_at: datetime | None = None
    told_at: datetime | None = None
    error: str | None = None


ATTEMPT_ERRORS = TypeAdapter(list[AttemptError])


class Submission(_Value):
    """The half of a job that is written once. `retry_of` is the job that it is run again for."""

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
    created_at: datetime


class State(_Value):
    """The half of a job that moves. `errors_json` is what its attempts raised, the newest last.

    `attempt` counts starts and is the fence a handler may hand to others; `failures`, `losses` and
    `releases` count the attempts that raised, lost their worker, and were given back at a shutdown.
    `revision` counts every write and guards the compare-and-swap, `version` only the changes a
    client can see. `lane` and `due_at` say who must look at this job next, and when; None is never.
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
    version: int = 1
    revision: int = Field(default=1, exclude=True)
    lane: str = Field(default=MAINTENANCE_LANE, exclude=True)
    due_at: datetime | None = Field(default=None, exclude=True)


class Job(Submission, State):
    """One job as it stands at one revision. A new state is a new object."""

    @property
    def payload(self) -> JsonValue:
        """Parse the payload; each call makes a new value."""
        parsed: JsonValue = json.loads(self.payload_json)
        return parsed

    @property
    def result(self) -> JsonValue:
        """Parse the result; None before completion, and where the handler returned None."""
        if self.result_json is None:
            return None
        parsed: JsonValue = json.loads(self.result_json)
        return parsed

    @property
    def attempt_errors(self) -> list[AttemptError]:
        """Parse what the attempts raised, the newest last; only the last ones are kept."""
        if self.errors_json is None:
            return []
        try:
            return ATTEMPT_ERRORS.validate_json(self.errors_json)
        except ValidationError as error:
            raise UnreadableJob(self.id) from error

    @property
    def wide_bytes(self) -> int:
        """How many bytes payload, result and errors of its attempts have."""
        return len(self.payload_json) + len(self.result_json or b"") + len(self.errors_json or b"")

    def updated(self, newer: Self) -> Self:
        """Return what is stored when a change to this job is written whose job is `newer`.

        That is the submission of this job, the state of the newer one, and of its wide data what is
        not None there.
        """
        values = newer.__dict__ | {name: self.__dict__[name] for name in Submission.model_fields}
        for name in ("result_json", "errors_json"):
            if values[name] is None:
                values[name] = self.__dict__[name]
        return self.of(values)

    def narrow(self) -> Self:
        """Return the job as lists show it: without payload, result and errors of its attempts."""
        return self.changed(payload_json=b"", result_json=None, errors_json=None)

"""Makes the submission of a job from its type, its payload and the caller's options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Generic, TypedDict, TypeVar

from asyncjobs.core.descriptions import checked_tags, checked_title, metadata_text
from asyncjobs.core.handlers import Handler, JobType
from asyncjobs.core.job import LONGEST, RESERVED_PREFIX, Delivery, Job, Submission, new_job_id
from asyncjobs.core.tracing import new_trace_id, trace_id_of
from asyncjobs.errors import (
    FieldIssue,
    IllegalMove,
    InvalidIdempotencyKey,
    InvalidPayload,
    UnknownJob,
)
from asyncjobs.settings import Seconds, duration

P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class EnqueueOptions:
    """Rarely needed options of one job.

    The job does not begin before `run_at`: an aware datetime, or a duration from now. `deadline`
    counts from then on and replaces the handler's. `traceparent` (W3C) or `trace_id` links the job
    to a trace; a malformed `traceparent` is ignored, as the standard requires. `callback_url` is
    called when the job has ended; the queue needs `callbacks` for it.

    People see the `title` (at most 200 characters) and the `metadata` (JSON values, at most 16
    KiB), and the handler may change both. Jobs are found by their `tags`: at most 10 of 128
    characters.

    Raises `ValueError` for a datetime without a time zone, for durations out of range, and for
    titles, tags and metadata beyond these limits.
    """

    run_at: datetime | Seconds | None = None
    deadline: Seconds | None = None
    traceparent: str | None = None
    trace_id: str | None = None
    callback_url: str | None = None
    title: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)
    #: The metadata as it is stored.
    metadata_json: bytes | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        checked_title(self.title)
        if self.tags != ():
            object.__setattr__(self, "tags", checked_tags(self.tags))
        if self.metadata is not None:
            object.__setattr__(self, "metadata_json", metadata_text(self.metadata))
        moment = self.run_at
        if isinstance(moment, datetime):
            if moment.tzinfo is None:
                raise ValueError(f"run_at must have a time zone, got {moment}.")
            # In a zone with daylight saving time, adding hours counts wall-clock hours.
            object.__setattr__(self, "run_at", moment.astimezone(UTC))
        elif moment is not None and abs(duration(moment)) > LONGEST:
            raise ValueError(f"run_at must be at most {LONGEST.days} days ahead, got {moment}.")
        if self.deadline is not None and not timedelta(0) < duration(self.deadline) <= LONGEST:
            raise ValueError(f"A deadline must be ahead, by at most {LONGEST.days} days.")

    def begins(self, now: datetime) -> datetime:
        """Return the earliest moment at which the job may begin."""
        moment = self.run_at
        if moment is None:
            return now
        return max(now, moment if isinstance(moment, datetime) else now + duration(moment))


NO_OPTIONS = EnqueueOptions()


class ManyTerms(TypedDict, total=False):
    """Options of `AsyncJobs.enqueue_many` beside the handler and payloads, for type checkers."""

    user_id: str | None
    options: EnqueueOptions | None
    connection: object


class EnqueueTerms(ManyTerms, total=False):
    """Options of `AsyncJobs.enqueue` beside the handler and the payload, for type checkers."""

    idempotency_key: str | None


class BatchTerms(EnqueueTerms, total=False):
    """Options of `AsyncJobs.enqueue_batch` beside handler and payloads, for type checkers."""

    title: str | None


def checked_options(options: EnqueueOptions | None) -> EnqueueOptions:
    """Return the options, or those that apply without; raise `TypeError` for another object."""
    if options is None:
        return NO_OPTIONS
    if not isinstance(options, EnqueueOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"options must be EnqueueOptions, got {type(options).__name__}.")
    return options


def check_payloads(payloads: Iterable[Any]) -> None:
    """Raise `TypeError` unless these can be the payloads of a batch."""
    given: Any = payloads
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        kind = type(given).__name__  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(f"A batch needs an iterable of payloads, such as a list, got {kind}.")


@dataclass(frozen=True)
class Batch(Generic[P]):
    """The payloads of a batch, where a route would give one payload to `accept`."""

    payloads: Iterable[P]

    def __post_init__(self) -> None:
        check_payloads(self.payloads)


class Owner(Enum):
    """Stands for any owner of a job; None stands for anonymous callers."""

    ANY = "any"


def owned_by(user_id: str | Owner | None, job: Job) -> Job:
    """Return the job if it has this owner; raise `UnknownJob` as for a job that does not exist."""
    if user_id is not Owner.ANY and job.user_id != user_id:
        raise UnknownJob(job.id)
    return job


@dataclass(frozen=True)
class Caller:
    """The owner of a submission, and its idempotency key."""

    user_id: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Accepted:
    """An accepted job; `replayed` if an earlier call with its idempotency key made it."""

    job: Job
    replayed: bool


@dataclass(frozen=True)
class Terms:
    """The queue's part of a submission: its time, its delivery, and the estimated duration."""

    now: datetime
    delivery: Delivery
    estimate: timedelta | None = None


def make_submission(
    kind: JobType[P, Any], payload: P, caller: Caller, options: EnqueueOptions, terms: Terms
) -> Submission:
    """Return the half of a new job that never changes, including a new id.

    The type's limits are copied: a later release that changes them does not affect jobs that wait.
    Raises `InvalidPayload` or `PayloadTooLarge`, and `InvalidIdempotencyKey` for a reserved key.
    """
    check_key(caller.idempotency_key)
    text = kind.dump_payload(payload)
    fingerprint = None if caller.idempotency_key is None else kind.fingerprint(payload)
    return submission_of(kind, (text, fingerprint), caller, options, terms)


def check_key(key: str | None) -> None:
    """Raise `InvalidIdempotencyKey` for a key that belongs to the library: of a tick or a retry."""
    if isinstance(key, str) and key.startswith(RESERVED_PREFIX):
        raise InvalidIdempotencyKey(f"keys that begin with {RESERVED_PREFIX!r} are reserved")


def submission_of(
    kind: JobType[Any, Any],
    payload: tuple[bytes, str | None],
    caller: Caller,
    options: EnqueueOptions,
    terms: Terms,
) -> Submission:
    """Return the submission of a payload, given as its JSON text and its fingerprint."""
    policy, key = kind.policy, caller.idempotency_key
    traced = trace_id_of(options.traceparent)
    _check_text("user_id", caller.user_id)
    _check_text("idempotency_key", key)
    _check_text("trace_id", options.trace_id)
    deadline = policy.deadline if options.deadline is None else duration(options.deadline)
    text, fingerprint = payload
    return Submission.of(
        {
            "id": new_job_id(),
            "type": kind.name,
            "payload_json": text,
            "retry_of": None,
            "user_id": caller.user_id,
            "idempotency_key": key,
            "fingerprint": fingerprint,
            "trace_id": options.trace_id or traced or new_trace_id(),
            "traceparent": options.traceparent if traced else None,
            "queue": policy.queue,
            "delivery": terms.delivery if isinstance(kind, Handler) else Delivery.EXTERNAL,
            "retry": policy.retry,
            "max_deliveries": policy.max_deliveries,
            "max_releases": policy.max_releases,
            "timeout": policy.timeout,
            "deadline": options.begins(terms.now) + deadline,
            "retention": policy.retention,
            "estimated_duration": terms.estimate,
            "callback_url": options.callback_url,
            "given_title": options.title,
            "given_metadata_json": options.metadata_json,
            "tags": options.tags,
            "batch": None,
            "scheduled_at": None,
            "created_at": terms.now,
        }
    )


def submit_again(job: Job, terms: Terms, traceparent: str | None = None) -> Submission:
    """Return the submission of a new job that runs a finished one again; `retry_of` names that one.

    The limits are the same, and the deadline is as far ahead as it was then. The new job has its
    own trace, and an idempotency key made of the id of the old job: a repetition finds the new job.
    It has the title, tags and metadata of the submission, and is not part of a batch. Raises
    `IllegalMove` if the job has not ended.
    """
    if not job.status.terminal:
        raise IllegalMove(job.id, "be run again", job.status, "it has not ended")
    kept: dict[str, Any] = {name: getattr(job, name) for name in Submission.model_fields}
    fresh: dict[str, Any] = {
        "id": new_job_id(),
        "retry_of": job.id,
        "idempotency_key": f"{RESERVED_PREFIX}retry:{job.id}",
        "fingerprint": None,
        "batch": None,
        "trace_id": trace_id_of(traceparent) or new_trace_id(),
        "traceparent": traceparent,
        "deadline": terms.now + (job.deadline - job.created_at),
        "estimated_duration": terms.estimate,
        "created_at": terms.now,
    }
    return Submission.of({**kept, **fresh})


def same_payload(kind: JobType[Any, Any], one: Submission, other: Submission) -> bool:
    """Return whether two submissions have the same payload, by their fingerprints if they have any.

    If these differ, the values decide: a set, for example, is written in any order.
    """
    if one.fingerprint is not None and one.fingerprint == other.fingerprint:
        return True
    try:
        return bool(kind.load_payload(one.payload_json) == kind.load_payload(other.payload_json))
    except InvalidPayload:
        return False


def _check_text(name: str, value: str | None) -> None:
    if value is None:
        return
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # any caller
        raise TypeError(f"{name} must be a string, got {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidPayload([FieldIssue(name, str(error))]) from error

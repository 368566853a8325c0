"""The rules of schedules: when the next tick is, and what a look at a due record means.

A *tick* is a moment at which a schedule enqueues a job. The record of a schedule is a job that is
never run; its state says which tick is next and which one was the latest. Before the job of a tick
is stored, the record is written with `enqueuing_since`; after that, with the job's id. So a process
that dies in between leaves a record from which another process continues. The job's id is made of
the record and the tick, so that the tick has one job, whatever the code that continues declares.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, TypedDict

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import (
    LONGEST,
    RESERVED_PREFIX,
    SCHEDULE_TYPE,
    Delivery,
    Job,
    JobId,
    JobStatus,
    ScheduleState,
    Submission,
    job_id_of,
)
from asyncjobs.core.submission import NO_OPTIONS, Caller, EnqueueOptions, Terms, submission_of
from asyncjobs.core.tracing import new_trace_id
from asyncjobs.errors import AsyncJobsError, ConfigurationError
from asyncjobs.settings import Seconds, duration

#: What happens to ticks that came while no process was there to enqueue their jobs: no job, or one
#: job for the latest of them.
Missed = Literal["skip", "once"]

#: How late the job of a tick may be enqueued if missed ticks are skipped.
GRACE = timedelta(minutes=1)

#: The shortest interval between two ticks of `every`.
SHORTEST_INTERVAL = timedelta(seconds=1)

#: How far ahead of the clock a record may be. Clocks are set back by less, if they were not wrong.
CLOCK_FAULT = timedelta(days=1)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


class ScheduleTerms(TypedDict, total=False):
    """Options of `AsyncJobs.schedule` beside the handler and the payload, for type checkers."""

    cron: str | None
    every: Seconds | None
    timezone: str | None
    missed: Missed
    user_id: str | None
    options: EnqueueOptions | None


class Timetable(Protocol):
    """The ticks of a schedule."""

    def after(self, moment: datetime, /) -> datetime | None:
        """Return the first tick after a moment, in UTC; None if there is none."""
        ...


@dataclass(frozen=True)
class Every:
    """Ticks at the multiples of an interval since 1970 (UTC), the same in every process."""

    interval: timedelta

    def after(self, moment: datetime, /) -> datetime | None:
        return _EPOCH + ((moment - _EPOCH) // self.interval + 1) * self.interval


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a schedule enqueues and when; either `cron` or `every` is set."""

    type: str
    cron: str | None = None
    timezone: str | None = None
    every: timedelta | None = None
    missed: Missed = "skip"

    def text(self) -> str:
        """Return the canonical text, by which two definitions are compared."""
        every = None if self.every is None else self.every.total_seconds()
        given = {**vars(self), "every": every}
        kept = {name: value for name, value in given.items() if value is not None}
        return json.dumps(kept, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Definition:
        """Return the definition of a canonical text, also of one that a newer version wrote."""
        given: dict[str, Any] = json.loads(text)
        known = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
        if "every" in known:
            known["every"] = timedelta(seconds=known["every"])
        return cls(**known)

    @property
    def timing(self) -> tuple[object, ...]:
        """What the ticks depend on."""
        return self.cron, self.timezone, self.every


@dataclass(frozen=True)
class Declared:
    """A schedule as the code of this process declares it."""

    name: str
    kind: JobType[Any, Any]
    payload_json: bytes
    definition: Definition
    timetable: Timetable
    user_id: str | None = None
    options: EnqueueOptions = NO_OPTIONS


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule of a store: what it enqueues and when, its next tick and its latest one.

    Either `cron` with its `timezone` or `every` is set. `next_at` is None if it is paused or has no
    more ticks. `last_job` is the id of the job of the tick `last_at`, and `last_status` the job's
    status; None if that job was deleted. `declared` is whether the code of this process declares
    the schedule.
    """

    name: str
    type: str
    cron: str | None = None
    timezone: str | None = None
    every: timedelta | None = None
    missed: Missed = "skip"
    paused: bool = False
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_job: JobId | None = None
    last_status: JobStatus | None = None
    declared: bool = False


@dataclass(frozen=True)
class Step:
    """What follows from a look at a due record: its next state, and the tick to enqueue, if any.

    The state is written before the job is enqueued.
    """

    state: ScheduleState
    tick: datetime | None = None


@dataclass(frozen=True)
class Tick:
    """The time of a schedule's job; the job of a run by hand has neither a key nor a known id."""

    at: datetime
    key: str | None = None
    job_id: JobId | None = None


def check_schedule_name(name: object) -> str:
    """Return the name of a schedule; raise `ConfigurationError` if it is not valid."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            "The name of a schedule has 1 to 100 letters, digits, dots, hyphens and underscores, "
            f"and begins with a letter or digit; got {name!r}."
        )
    return name


def check_missed(name: str, missed: object) -> None:
    """Raise `ConfigurationError` if `missed` is not valid."""
    if missed not in ("skip", "once"):
        raise ConfigurationError(
            f'Schedule {name!r}: missed must be "skip" or "once", got {missed!r}.'
        )


def checked_interval(name: str, every: Seconds) -> timedelta:
    """Return the interval of a schedule; raise `ConfigurationError` if it is not valid."""
    try:
        interval = duration(every)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"Schedule {name!r}: `every` is not valid: {error}") from error
    if not SHORTEST_INTERVAL <= interval <= LONGEST:
        raise ConfigurationError(
            f"Schedule {name!r}: `every` must be between {SHORTEST_INTERVAL.seconds} second and "
            f"{LONGEST.days} days, got {interval}."
        )
    return interval


def check_options(name: str, options: EnqueueOptions) -> None:
    """Raise `ConfigurationError` for options that only fit a single job, and for other values."""
    if not isinstance(options, EnqueueOptions):  # pyright: ignore[reportUnnecessaryIsInstance]  # any caller
        raise ConfigurationError(
            f"Schedule {name!r}: options must be EnqueueOptions, got {type(options).__name__}."
        )
    given = {
        "run_at": options.run_at,
        "trace_id": options.trace_id,
        "traceparent": options.traceparent,
    }
    for option, value in given.items():
        if value is not None:
            raise ConfigurationError(
                f"Schedule {name!r}: its jobs cannot all have the same {option}."
            )


def check_submission(declared: Declared, now: datetime) -> None:
    """Raise `ConfigurationError` if no job of a schedule can be made, for example for its owner."""
    try:
        submission_at(declared, Tick(now), Terms(now, Delivery.PULL), None)
    except (TypeError, ValueError, AsyncJobsError) as error:
        raise ConfigurationError(f"Schedule {declared.name!r}: {error}") from error


def record_id(name: str) -> JobId:
    """Return the id of the record of a schedule, which is made of its name."""
    return job_id_of(hashlib.sha256(f"{SCHEDULE_TYPE}:{name}".encode()).hexdigest()[:32])


def new_record(declared: Declared, now: datetime) -> Job:
    """Return the record of a new schedule, which waits for the first tick after `now`."""
    submission = Submission(
        id=record_id(declared.name),
        type=SCHEDULE_TYPE,
        idempotency_key=declared.name,
        trace_id=new_trace_id(),
        delivery=Delivery.SCHEDULE,
        deadline=now + LONGEST,
        created_at=now,
    )
    first = ScheduleState(
        definition=declared.definition.text(), next_at=declared.timetable.after(now)
    )
    return lifecycle.submit_schedule(submission, first)


def redefined(state: ScheduleState, declared: Declared, now: datetime) -> ScheduleState | None:
    """Return the state after a new definition; None if the definition is the same.

    Another timing begins with the first tick after now.
    """
    text = declared.definition.text()
    if state.definition == text:
        return None
    next_at = state.next_at
    if Definition.parse(state.definition).timing != declared.definition.timing:
        next_at = declared.timetable.after(max(now, state.last_at or now))
    return state.changed(definition=text, next_at=next_at)


def repaired(record: Job, timetable: Timetable, now: datetime) -> Job | None:
    """Return a record that a clock far ahead of `now` has changed, as it goes on from now.

    None if no clock was wrong. Without this, such a record would wait until that time has come.
    """
    state, latest = record.schedule, now + CLOCK_FAULT
    allowed = timetable.after(latest)
    if state is None or allowed is None:
        return None
    good = state
    if state.last_at is not None and state.last_at > latest:
        good = good.changed(last_at=None, last_job=None, enqueuing_since=None)
    elif state.enqueuing_since is not None and state.enqueuing_since > latest:
        good = good.changed(enqueuing_since=now)
    if state.next_at is not None and state.next_at > allowed:
        good = good.changed(next_at=timetable.after(now))
    waits_too_long = record.due_at is not None and record.due_at > allowed
    if good is state and not waits_too_long:
        return None
    unfinished = good.enqueuing_since is not None
    return lifecycle.reschedule(record, good, waits_until=now if unfinished else None)


def look_at(
    state: ScheduleState,
    timetable: Timetable,
    missed: Missed,
    now: datetime,
    retention: timedelta | None,
    hold: timedelta = timedelta(0),
) -> Step:
    """Return what follows from a look at a record; at most one tick is enqueued.

    `retention` is that of the jobs: an unfinished tick is only repeated while its job, if it was
    stored, cannot have been deleted yet. `hold` is the time for which a record is left to the
    process that enqueues: a tick is not too late because of it.
    """
    since = state.enqueuing_since
    if since is not None and state.last_at is not None:
        stored_is_kept = retention is None or now < since + retention
        if stored_is_kept and _may_run(since + hold, missed, now):
            return Step(state, state.last_at)
        state = state.changed(enqueuing_since=None)
    if state.next_at is None or now < state.next_at:
        return Step(state)
    latest = _latest_tick(timetable, state.next_at, now)
    state = state.changed(next_at=timetable.after(max(now, state.last_at or now)))
    is_new = state.last_at is None or latest > state.last_at
    if not (is_new and _may_run(latest, missed, now)):
        return Step(state)
    return Step(state.changed(last_at=latest, last_job=None, enqueuing_since=now), latest)


def enqueued(state: ScheduleState, tick: datetime, job_id: JobId) -> ScheduleState | None:
    """Return the state after the job of a tick was stored; None if that is known already."""
    if state.enqueuing_since is None or state.last_at != tick:
        return None
    return state.changed(enqueuing_since=None, last_job=job_id)


def given_up(state: ScheduleState, tick: datetime, now: datetime) -> ScheduleState | None:
    """Return the state after the job of a tick could not be made; None if it is tried again.

    Otherwise the ticks after it would never be enqueued.
    """
    since = state.enqueuing_since
    if since is None or state.last_at != tick or now - since <= GRACE:
        return None
    return state.changed(enqueuing_since=None)


def tick_of(record: Job, at: datetime) -> Tick:
    """Return a tick with the key and the id of its job.

    The id cannot be guessed: the trace id of the record is random, and only the store has it.
    """
    made_of = f"{record.id}:{record.trace_id}:{at.isoformat()}"
    job_id = job_id_of(hashlib.sha256(made_of.encode()).hexdigest()[:32])
    return Tick(at, tick_key(record.idempotency_key or "", at), job_id)


def tick_key(name: str, tick: datetime) -> str:
    """Return the idempotency key of a tick's job. Users cannot use keys with this prefix."""
    return f"{RESERVED_PREFIX}schedule:{name}:{tick.isoformat()}"


def submission_at(
    declared: Declared, tick: Tick, terms: Terms, traceparent: str | None
) -> Submission:
    """Return the submission of a schedule's job."""
    options = replace(declared.options, traceparent=traceparent)
    caller = Caller(declared.user_id, tick.key)
    payload = declared.payload_json, None
    made = submission_of(declared.kind, payload, caller, options, terms)
    return made.changed(id=tick.job_id or made.id, scheduled_at=tick.at)


def described(records: Iterable[Job], declared: Iterable[str]) -> list[Schedule]:
    """Return the values of records, by name, without the status of their jobs."""
    names = frozenset(declared)
    found: list[Schedule] = []
    for record in records:
        name, state = record.idempotency_key, record.schedule
        if name is None or state is None:
            continue
        definition = Definition.parse(state.definition)
        found.append(
            Schedule(
                name=name,
                **vars(definition),
                paused=state.paused,
                next_at=None if state.paused else state.next_at,
                last_at=state.last_at,
                last_job=state.last_job,
                declared=name in names,
            )
        )
    return sorted(found, key=lambda one: one.name)


def _may_run(tick: datetime, missed: Missed, now: datetime) -> bool:
    return missed == "once" or now - tick <= GRACE


def _latest_tick(timetable: Timetable, first: datetime, now: datetime) -> datetime:
    """Return the latest tick until now; `first` is a tick that is not after it.

    It is found from now backwards, in doubling steps: there may be a million ticks in between.
    """
    latest, back = first, _SECOND
    while now - back > first:
        found = timetable.after(now - back)
        if found is not None and found <= now:
            latest = found
            break
        back *= 2
    while (following := timetable.after(latest)) is not None and following <= now:
        latest = following
    return latest

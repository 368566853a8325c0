"""The rules of schedules: ticks, missed ticks, crashes and changed definitions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import EnqueueOptions
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Job, JobId, Policy, ScheduleState, parse_job_id
from asyncjobs.core.lifecycle import reschedule
from asyncjobs.core.schedules import (
    CLOCK_FAULT,
    GRACE,
    Declared,
    Definition,
    Every,
    Missed,
    check_missed,
    check_options,
    check_schedule_name,
    check_submission,
    checked_interval,
    described,
    enqueued,
    given_up,
    look_at,
    new_record,
    record_id,
    redefined,
    repaired,
    tick_key,
    tick_of,
)
from asyncjobs.errors import ConfigurationError

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
HOURLY = Every(HOUR)
DEFINITION = Definition(type="export", every=HOUR)
JOB = JobId("job_1")


def declared(definition: Definition = DEFINITION) -> Declared:
    kind = JobType[None, None]("export", policy=Policy())
    return Declared("nightly", kind, b"null", definition, Every(definition.every or HOUR))


def waiting(next_at: datetime, **state: object) -> ScheduleState:
    values = {"definition": DEFINITION.text(), "next_at": next_at, **state}
    return ScheduleState.model_validate(values)


def test_the_ticks_of_an_interval_are_its_multiples_since_1970() -> None:
    every = Every(7 * SECOND)
    first = every.after(NOON)
    assert first is not None
    assert first - NOON <= 7 * SECOND
    assert int(first.timestamp()) % 7 == 0
    assert every.after(first) == first + 7 * SECOND
    assert every.after(first - timedelta(microseconds=1)) == first


def test_no_tick_is_enqueued_before_it_is_due() -> None:
    state = waiting(NOON)
    step = look_at(state, HOURLY, "skip", NOON - SECOND, None)
    assert (step.tick, step.state) == (None, state)


def test_a_due_tick_is_written_before_its_job_is_stored() -> None:
    step = look_at(waiting(NOON, last_job="job_0"), HOURLY, "skip", NOON, None)
    assert step.tick == NOON
    assert step.state == waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON)
    assert enqueued(step.state, NOON, JOB) == waiting(NOON + HOUR, last_at=NOON, last_job=JOB)


def test_an_interrupted_tick_is_continued() -> None:
    interrupted = waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON)
    step = look_at(interrupted, HOURLY, "skip", NOON + 30 * SECOND, HOUR)
    assert (step.tick, step.state) == (NOON, interrupted)


def test_an_interrupted_tick_whose_job_may_be_deleted_already_is_not_repeated() -> None:
    interrupted = waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON)
    late = NOON + 30 * SECOND
    step = look_at(interrupted, HOURLY, "once", late, 30 * SECOND)
    assert (step.tick, step.state.enqueuing_since, step.state.last_at) == (None, None, NOON)
    assert look_at(interrupted, HOURLY, "once", late, 31 * SECOND).tick == NOON


def test_the_retention_of_an_interrupted_tick_counts_from_its_beginning() -> None:
    """A missed tick may be older than the retention when a process begins with it."""
    late = NOON + 40 * MINUTE
    begun = look_at(waiting(NOON), HOURLY, "once", late, 10 * MINUTE).state
    assert begun.enqueuing_since == late
    assert look_at(begun, HOURLY, "once", late + 9 * MINUTE, 10 * MINUTE).tick == NOON
    assert look_at(begun, HOURLY, "once", late + 10 * MINUTE, 10 * MINUTE).tick is None


def test_an_interrupted_tick_is_not_late_because_its_record_was_held() -> None:
    begun = waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON + 50 * SECOND)
    last = NOON + 50 * SECOND + 5 * MINUTE + GRACE
    assert look_at(begun, HOURLY, "skip", last, None, 5 * MINUTE).tick == NOON
    assert look_at(begun, HOURLY, "skip", last + SECOND, None, 5 * MINUTE).tick is None


def test_an_interrupted_tick_stays_due_whatever_else_changes() -> None:
    record, until = new_record(declared(), NOON - MINUTE), NOON + 30 * SECOND
    begun = look_at(record.schedule or waiting(NOON), HOURLY, "once", NOON, None).state
    record = reschedule(record, begun, waits_until=until)
    new = redefined(begun, declared(Definition(type="export", every=2 * HOUR)), NOON)
    assert new is not None
    assert reschedule(record, new).due_at == until
    paused = reschedule(record, begun.changed(paused=True))
    assert paused.due_at is None
    resumed = reschedule(paused, begun)
    assert resumed.due_at == NOON
    done = enqueued(begun, NOON, JOB)
    assert done is not None
    assert reschedule(resumed, done).due_at == NOON + HOUR


def test_a_tick_whose_job_cannot_be_made_is_given_up_after_a_while() -> None:
    begun = waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON)
    assert given_up(begun, NOON, NOON + GRACE) is None
    assert given_up(begun, NOON - HOUR, NOON + HOUR) is None
    assert given_up(begun, NOON, NOON + GRACE + SECOND) == waiting(NOON + HOUR, last_at=NOON)


def test_after_an_interrupted_tick_that_is_given_up_the_next_one_is_enqueued() -> None:
    interrupted = waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON)
    step = look_at(interrupted, HOURLY, "skip", NOON + HOUR, timedelta(0))
    assert (step.tick, step.state.last_at) == (NOON + HOUR, NOON + HOUR)


@pytest.mark.parametrize(
    ("missed", "late", "tick"),
    [
        ("skip", GRACE, NOON),
        ("skip", GRACE + SECOND, None),
        ("skip", 5 * HOUR + MINUTE, NOON + 5 * HOUR),
        ("skip", 5 * HOUR + 2 * MINUTE, None),
        ("once", GRACE + SECOND, NOON),
        ("once", 5 * HOUR + 2 * MINUTE, NOON + 5 * HOUR),
    ],
)
def test_missed_ticks_are_skipped_or_run_once(
    missed: Missed, late: timedelta, tick: datetime | None
) -> None:
    step = look_at(waiting(NOON), HOURLY, missed, NOON + late, None)
    assert step.tick == tick
    next_at = step.state.next_at
    assert next_at is not None
    assert NOON + late < next_at <= NOON + late + HOUR


def test_a_year_of_missed_ticks_makes_one_job() -> None:
    late = NOON + timedelta(days=365)
    step = look_at(waiting(NOON), Every(SECOND), "once", late, None)
    assert (step.tick, step.state.next_at) == (late, late + SECOND)


def test_a_clock_that_jumps_back_repeats_no_tick() -> None:
    state = waiting(NOON + HOUR, last_at=NOON, last_job=JOB)
    assert look_at(state, HOURLY, "once", NOON - HOUR, None).tick is None
    # Even if a record is due although its tick was enqueued.
    again = waiting(NOON, last_at=NOON, last_job=JOB)
    step = look_at(again, HOURLY, "once", NOON, None)
    assert (step.tick, step.state.next_at) == (None, NOON + HOUR)


def record_of(state: ScheduleState, *, due_at: datetime | None = None) -> Job:
    return reschedule(new_record(declared(), NOON), state, waits_until=due_at)


YEAR = timedelta(days=365)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (record_of(waiting(NOON + YEAR, last_at=NOON + YEAR, last_job=JOB)), waiting(NOON + HOUR)),
        (
            record_of(waiting(NOON + YEAR, last_at=NOON, last_job=JOB)),
            waiting(NOON + HOUR, last_at=NOON, last_job=JOB),
        ),
        (record_of(waiting(NOON), due_at=NOON + YEAR), waiting(NOON)),
        (
            record_of(waiting(NOON + YEAR, last_at=NOON + YEAR, enqueuing_since=NOON + YEAR)),
            waiting(NOON + HOUR),
        ),
        (
            record_of(waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON + YEAR)),
            waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON),
        ),
    ],
    ids=["both", "next", "held", "unfinished", "unfinished-late"],
)
def test_after_a_clock_that_was_far_ahead_a_schedule_goes_on(
    record: Job, expected: ScheduleState
) -> None:
    good = repaired(record, HOURLY, NOON)
    assert good is not None
    assert good.schedule == expected
    assert good.due_at == (NOON if expected.enqueuing_since else expected.next_at)
    assert repaired(good, HOURLY, NOON) is None


@pytest.mark.parametrize(
    "state",
    [
        waiting(NOON + HOUR, last_at=NOON),
        waiting(NOON + HOUR + CLOCK_FAULT, last_at=NOON + CLOCK_FAULT),
        waiting(NOON - YEAR, last_at=NOON - 2 * YEAR),
        waiting(NOON + HOUR, last_at=NOON, enqueuing_since=NOON),
        waiting(NOON).changed(next_at=None),
    ],
)
def test_a_schedule_is_left_alone_if_no_clock_was_wrong(state: ScheduleState) -> None:
    assert repaired(record_of(state), HOURLY, NOON) is None


def test_a_paused_schedule_is_set_right_and_stays_paused() -> None:
    good = repaired(record_of(waiting(NOON + YEAR, paused=True)), HOURLY, NOON)
    assert good is not None
    assert good.due_at is None
    assert good.schedule == waiting(NOON + HOUR, paused=True)


@given(
    jumps=st.lists(st.integers(-5 * 3600, 5 * 3600), max_size=30),
    missed=st.sampled_from(["skip", "once"]),
    crashes=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_no_tick_has_two_jobs_whatever_the_clock_does(
    jumps: list[int], missed: Missed, crashes: list[bool]
) -> None:
    now, state, jobs = NOON, waiting(NOON), list[datetime]()
    for jump, crash in zip(jumps, crashes, strict=False):
        now += jump * SECOND
        step = look_at(state, HOURLY, missed, now, None)
        state = step.state
        if step.tick is not None and not crash:
            jobs.append(step.tick)
            state = enqueued(state, step.tick, JOB) or state
    assert sorted(set(jobs)) == jobs


def test_the_outcome_of_a_tick_is_written_once() -> None:
    done = waiting(NOON + HOUR, last_at=NOON, last_job=JOB)
    assert enqueued(done, NOON, JOB) is None
    other = waiting(NOON + 2 * HOUR, last_at=NOON + HOUR, enqueuing_since=NOON + HOUR)
    assert enqueued(other, NOON, JOB) is None


def test_a_schedule_without_more_ticks_is_never_due() -> None:
    @dataclass(frozen=True)
    class Never:
        def after(self, _moment: datetime, /) -> datetime | None:
            return None

    step = look_at(waiting(NOON), Never(), "skip", NOON, None)
    assert (step.tick, step.state.next_at) == (NOON, None)
    assert look_at(waiting(NOON).changed(next_at=None), Never(), "once", NOON, None).tick is None


def test_another_definition_begins_with_the_first_tick_after_now() -> None:
    state = waiting(NOON, last_at=NOON - HOUR, last_job=JOB, paused=True)
    new = declared(Definition(type="export", every=MINUTE))
    changed = redefined(state, new, NOON - 10 * MINUTE)
    assert changed is not None
    assert (changed.next_at, changed.paused) == (NOON - 9 * MINUTE, True)
    assert (changed.last_at, changed.last_job) == (NOON - HOUR, JOB)
    assert redefined(changed, new, NOON) is None


def test_a_definition_with_the_same_timing_keeps_the_next_tick() -> None:
    new = declared(Definition(type="report", every=HOUR, missed="once"))
    changed = redefined(waiting(NOON), new, NOON + 5 * HOUR)
    assert changed is not None
    assert changed.next_at == NOON
    assert Definition.parse(changed.definition) == new.definition


def test_a_changed_definition_repeats_no_tick() -> None:
    state = waiting(NOON + HOUR, last_at=NOON, last_job=JOB)
    new = declared(Definition(type="export", every=30 * MINUTE))
    changed = redefined(state, new, NOON - HOUR)
    assert changed is not None
    assert changed.next_at == NOON + 30 * MINUTE


@pytest.mark.parametrize(
    "definition",
    [
        Definition(type="export", every=timedelta(days=1, microseconds=1), missed="once"),
        Definition(type="export", cron="0 3 * * *", timezone="Europe/Berlin"),
    ],
)
def test_a_definition_is_read_as_it_was_written(definition: Definition) -> None:
    text = definition.text()
    assert Definition.parse(text) == definition
    newer = text[:-1] + ', "jitter": 5}'
    assert Definition.parse(newer) == definition


def test_a_record_has_the_name_of_the_schedule_and_an_id_made_of_it() -> None:
    record = new_record(declared(), NOON + MINUTE)
    assert record.id == record_id("nightly") != record_id("hourly")
    assert parse_job_id(record.id) == record.id
    assert (record.idempotency_key, record.user_id) == ("nightly", None)
    assert record.due_at == NOON + HOUR
    [value] = described([record], {"nightly"})
    assert (value.name, value.every, value.next_at) == ("nightly", HOUR, NOON + HOUR)
    assert value.declared
    assert tick_key("nightly", NOON) == "asyncjobs.schedule:nightly:2030-01-01T12:00:00+00:00"


def test_the_id_of_a_ticks_job_is_fixed_and_cannot_be_guessed() -> None:
    one, other = new_record(declared(), NOON), new_record(declared(), NOON)
    tick = tick_of(one, NOON)
    assert tick == tick_of(one, NOON)
    assert tick.key == tick_key("nightly", NOON)
    assert tick.job_id is not None
    assert parse_job_id(tick.job_id) == tick.job_id
    # The records of two stores have the same name and id, but not the same secret.
    ids = {tick.job_id, tick_of(one, NOON + HOUR).job_id, tick_of(other, NOON).job_id}
    assert len(ids) == 3


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä", "a/b", "a" * 101, "a\n", None, 5])
def test_a_name_that_does_not_fit_is_rejected(name: object) -> None:
    with pytest.raises(ConfigurationError, match="name of a schedule"):
        check_schedule_name(name)


@pytest.mark.parametrize("every", [0, -5, 0.999, float("nan"), "1", timedelta(days=40000), True])
def test_an_interval_out_of_range_is_rejected(every: float) -> None:
    with pytest.raises(ConfigurationError, match="every"):
        checked_interval("nightly", every)
    assert checked_interval("nightly", 1) == SECOND


def test_other_words_for_missed_are_rejected() -> None:
    check_missed("nightly", "once")
    with pytest.raises(ConfigurationError, match="missed"):
        check_missed("nightly", "all")


@pytest.mark.parametrize(
    "options",
    [
        EnqueueOptions(run_at=5),
        EnqueueOptions(trace_id="a"),
        EnqueueOptions(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ],
)
def test_options_of_a_single_job_are_rejected(options: EnqueueOptions) -> None:
    with pytest.raises(ConfigurationError, match="cannot all have the same"):
        check_options("nightly", options)


@pytest.mark.parametrize("options", [{}, {"title": "a"}, "a", 5])
def test_options_of_another_type_are_rejected(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be EnqueueOptions, got"):
        check_options("nightly", options)


@pytest.mark.parametrize("user_id", [42, "\ud800"])
def test_an_owner_that_no_job_can_have_is_rejected(user_id: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'nightly'.*user_id"):
        check_submission(replace(declared(), user_id=user_id), NOON)
    check_submission(replace(declared(), user_id="ann"), NOON)

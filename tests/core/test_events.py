"""Every move of a job has its event."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import get_args

import pytest

from asyncjobs import Event, Job, Retry, Transition
from asyncjobs.core import lifecycle
from asyncjobs.core.events import EventName, event_of
from asyncjobs.core.job import JobError, JobFile, Lease, Progress, ScheduleState
from asyncjobs.core.lifecycle import TRANSITIONS, Move
from asyncjobs.testing import sample_job

TOKEN = "t"  # noqa: S105  # of a lease
FILE = JobFile(name="export.csv", key="job_1/1-a", attempt=1)
ERROR = JobError(code="broken", message="It broke.")
SCHEDULE = ScheduleState(definition="{}")
BRIEFLY = Retry(max_attempts=2, initial_delay=timedelta(0))


def waiting(**changes: object) -> Job:
    return sample_job().model_copy(update={"retry": BRIEFLY, **changes})


def running(**changes: object) -> Job:
    job = waiting()
    lease = Lease(worker="w", token=TOKEN, until=job.run_at + timedelta(seconds=30))
    return lifecycle.start(job, job.run_at, lease).model_copy(update=changes)


def owing() -> Job:
    """A job that has ended and has a pending callback."""
    job = waiting(callback_url="https://receiver.example.com/")
    return lifecycle.cancel(job, job.run_at)


def asked_to_stop() -> Job:
    job = running()
    return lifecycle.cancel(job, job.run_at)


MOVES: dict[Move, list[tuple[Job, Callable[[Job], Job], Event | None]]] = {
    Move.START: [(waiting(), lambda job: lifecycle.start(job, job.run_at, None), Event.STARTED)],
    Move.EXTEND: [
        (
            running(),
            lambda job: lifecycle.extend(job, job.run_at, token=TOKEN, until=job.run_at),
            None,
        )
    ],
    Move.REPORT: [
        (running(), lambda job: lifecycle.report(job, Progress(percent=5), token=TOKEN), None),
        (asked_to_stop(), lambda job: lifecycle.report(job, Progress(), token=TOKEN), None),
    ],
    Move.ANNOUNCE_FILE: [
        (running(), lambda job: lifecycle.announce_file(job, FILE, token=TOKEN, limit=9), None)
    ],
    Move.RECORD_FILE: [
        (
            running().changed(files=(FILE,)),
            lambda job: lifecycle.record_file(job, job.run_at, FILE, token=TOKEN),
            None,
        )
    ],
    Move.COMPLETE: [
        (
            running(),
            lambda job: lifecycle.complete(job, job.run_at, token=TOKEN, result=b"1"),
            Event.COMPLETED,
        )
    ],
    Move.FAIL: [
        (
            running(),
            lambda job: lifecycle.fail(job, job.run_at, token=TOKEN, error=ERROR),
            Event.FAILED,
        )
    ],
    Move.RETRY: [
        (
            running(),
            lambda job: lifecycle.retry(job, job.run_at, token=TOKEN, jitter=0),
            Event.RETRIED,
        )
    ],
    Move.RELEASE: [
        (running(), lambda job: lifecycle.release(job, job.run_at, token=TOKEN), Event.RELEASED)
    ],
    Move.REQUEUE: [(waiting(), lifecycle.requeue, None)],
    Move.CANCEL: [
        (waiting(), lambda job: lifecycle.cancel(job, job.run_at), Event.CANCELLED),
        (running(), lambda job: lifecycle.cancel(job, job.run_at), Event.CANCEL_REQUESTED),
    ],
    Move.STOP: [
        (
            asked_to_stop(),
            lambda job: lifecycle.stop(job, job.run_at, token=TOKEN),
            Event.CANCELLED,
        )
    ],
    Move.EXPIRE: [
        (waiting(), lambda job: lifecycle.expire(job, job.deadline), Event.FAILED),
        (running(), lambda job: lifecycle.expire(job, job.deadline), Event.FAILED),
    ],
    Move.CALL_BACK: [(owing(), lambda job: lifecycle.call_back(job, job.run_at), None)],
    Move.RESCHEDULE: [
        (waiting(schedule=SCHEDULE), lambda job: lifecycle.reschedule(job, SCHEDULE), None)
    ],
    Move.LOSE: [
        (running(), lambda job: lifecycle.lose(job, job.deadline), Event.LOST),
        (running(max_deliveries=1), lambda job: lifecycle.lose(job, job.deadline), Event.FAILED),
    ],
}


@pytest.mark.parametrize("move", TRANSITIONS, ids=str)
def test_every_move_has_its_event(move: Move) -> None:
    for before, make_move, event in MOVES[move]:
        assert event_of(before, make_move(before)) is event


def test_an_event_after_a_lost_worker_has_worker_lost_set() -> None:
    for deliveries in (1, 3):
        before = running(max_deliveries=deliveries)
        lost = lifecycle.lose(before, before.deadline)
        event = event_of(before, lost)
        assert event is not None
        assert Transition(event, lost, before, before.deadline).worker_lost
    begun = running()
    ended = lifecycle.complete(begun, begun.run_at, token=TOKEN, result=b"1")
    assert not Transition(Event.COMPLETED, ended, begun, begun.run_at).worker_lost


def test_a_write_to_a_terminal_job_is_no_event() -> None:
    ended = lifecycle.cancel(waiting(), waiting().run_at)
    assert event_of(ended, ended.model_copy(update={"revision": ended.revision + 1})) is None


def test_every_event_has_its_name() -> None:
    assert list(get_args(EventName)) == [event.value for event in Event]

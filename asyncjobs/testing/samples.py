"""Sample jobs to store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncjobs.core import lifecycle
from asyncjobs.core.job import (
    AttemptError,
    Delivery,
    Detail,
    Job,
    JobError,
    JobFile,
    JobId,
    Lease,
    Progress,
    Retry,
    Submission,
    new_job_id,
)
from asyncjobs.core.labels import new_labels, tally_changes
from asyncjobs.protocols import Change, Store

#: The time at which sample jobs are made.
NOW = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)

#: The lane in which they wait.
LANE = "default"

#: Different names that are equal to a comparison that ignores case, accents, width, spaces, letters
#: beyond ASCII or the part after a NUL, or that evaluates wildcards.
LOOKALIKES = (
    *("ann", "Ann", "ANN", "änn", "a\u0308nn", "nn", "?nn", "\uff41nn", "a\u200bnn"),
    *("ann ", " ann", "ann\t", "ann\0", "ann\0x", "a%", "a_n", "a*", "a?n", "*", "%"),
    *("straße", "strasse", "\u0130", "i", "\u0131", "None", "null", "1", "01", "\uff11"),
)

_TEXT = 'Ärger, привет, 日本 🎈 \0 \u2028 "\\" \r\n'


def sample_job(**submission: Any) -> Job:
    """Make a pending job, due now in the lane `default`, with these fields changed."""
    return lifecycle.submit(sample_submission(**submission))


def sample_submission(**submission: Any) -> Submission:
    """Make the half of a job that is written once."""
    created_at: datetime = submission.get("created_at", NOW)
    fields: dict[str, Any] = {
        "id": new_job_id(),
        "type": "export",
        "payload_json": b'{"format":"csv"}',
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "timeout": timedelta(minutes=15),
        "deadline": created_at + timedelta(hours=24),
        "retention": timedelta(hours=24),
        "created_at": created_at,
        **submission,
    }
    return Submission(**fields)


def full_job() -> Job:
    """Make a job with a value in every field, and with characters that are easily lost."""
    job = sample_job(
        user_id="ann@example.com",
        idempotency_key="8e03978e-40d5-43dd-bc93-6894a57f9324",
        fingerprint="f" * 64,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        payload_json='{"text":"Grüße, 世界 🌍","nul":"\\u0000"}'.encode(),
        queue="high",
        delivery=Delivery.PUSH,
        retry=Retry(max_attempts=5, initial_delay=timedelta(seconds=0.5), factor=1.5),
        max_deliveries=7,
        estimated_duration=timedelta(seconds=12.5),
        callback_url="https://hooks.example.com/ended",
        scheduled_at=NOW,
        given_title=f"Customers {_TEXT}",
        given_metadata_json='{"text":"Grüße, 世界 🌍"}'.encode(),
        tags=("customer:42", _TEXT),
        batch=new_job_id(),
    )
    started = lifecycle.note_error(begun(job), sample_error(1))
    again = lifecycle.retry(started, NOW, token="t", jitter=0)
    lost = begun(again, token="u")
    lapsed = lifecycle.lose(lost, NOW + timedelta(seconds=30))
    running = lifecycle.start(lapsed, LATER, Lease(worker="host:2", token="v", until=LATER))
    asked = lifecycle.cancel(running, LATER)
    detail = Detail(message=f"packing {_TEXT}", current=3, total=7, unit=f"files {_TEXT}")
    progress = Progress(percent=42, detail=detail)
    reported = lifecycle.report(asked, progress, token="v")
    failed = lifecycle.fail(
        reported,
        LATER,
        token="v",
        error=JobError(code="bad_input", message=f"No such file: {_TEXT}"),
    )
    called = lifecycle.call_back(
        failed, LATER, error=f"away {_TEXT}", again_at=LATER + timedelta(hours=1)
    )
    lease = Lease(worker="host:1", token="w", until=LATER)
    file = sample_file(job, name=f"{_TEXT}.csv", media_type="text/csv")
    described = called.changed(
        new_title=_TEXT,
        new_metadata_json=b'{"rows":100}',
        files=(file, JobFile(name="next.csv", key=f"{job.id}/3-b", attempt=3)),
    )
    return described.changed(lease=lease, result_json=b'{"rows": 1e2}')


def sample_file(job: Job, **file: Any) -> JobFile:
    """Make the record of a saved file."""
    given: dict[str, Any] = {
        "name": "export.csv",
        "key": f"{job.id}/1-a",
        "size": 11,
        "digest": "9b" * 32,
        "attempt": 1,
        "saved_at": NOW,
    }
    return JobFile(**(given | file))


def sample_error(attempt: int) -> AttemptError:
    """Make the error of an attempt."""
    return AttemptError(
        attempt=attempt,
        at=NOW,
        type="ValueError",
        message="No such file: Grüße.csv",
        traceback='Traceback (most recent call last):\n  File "app.py", line 7\nValueError: …\n',
    )


def unreadable_job() -> Job:
    """Make a job that stores can write but not read, like one written by a newer version.

    A store that keeps jobs as objects can read it nevertheless.
    """
    return sample_job(retry=Retry().changed(max_attempts=0))


def begun(job: Job, token: str = "t") -> Job:
    """Start a job with a lease of half a minute from `NOW`."""
    lease = Lease(worker="host:1", token=token, until=NOW + timedelta(seconds=30))
    return lifecycle.start(job, NOW, lease)


async def ended(store: Store, job: Job, result: bytes) -> Job:
    """Start and complete a stored job; return the stored job."""
    started = begun(job)
    done = lifecycle.complete(started, NOW, token="t", result=result)
    written = await store.replace([Change(started, job.revision), Change(done, started.revision)])
    assert list(written) == [True, True]
    return done


def failed(job: Job) -> Job:
    """Start a job and let it fail."""
    error = JobError(code="bad_input", message="There is no such file.")
    return lifecycle.fail(begun(job), NOW, token="t", error=error)


def change_of(before: Job, job: Job) -> Change:
    """Return the change from one state of a job to another, with its labels and tallies."""
    labels, tallies = new_labels(before, job), tally_changes(before, job)
    return Change(job, before.revision, labels, tallies)


def ids(jobs: Sequence[Job]) -> list[JobId]:
    """Return the jobs' ids."""
    return [job.id for job in jobs]

"""Properties that are fixed when a job is submitted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncjobs import EnqueueOptions, Policy
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Delivery, Submission
from asyncjobs.core.submission import Caller, Terms, make_submission, same_payload
from asyncjobs.errors import InvalidPayload
from asyncjobs.testing.samples import NOW, sample_submission

MINUTE = timedelta(minutes=1)
TAGS = JobType[set[str], int]("tags", payload=set[str], result=int, policy=Policy())


def submitted(caller: Caller | None = None, **options: Any) -> Submission:
    terms = Terms(NOW, Delivery.PULL)
    return make_submission(TAGS, {"a"}, caller or Caller(), EnqueueOptions(**options), terms)


@pytest.mark.parametrize("minute", [60, 60.0, MINUTE])
def test_durations_are_seconds_or_a_timedelta(minute: float | timedelta) -> None:
    options = EnqueueOptions(run_at=minute, deadline=minute)
    assert options.begins(NOW) == NOW + MINUTE
    assert submitted(run_at=minute, deadline=minute).deadline == NOW + 2 * MINUTE


def test_run_at_is_now_unless_a_later_time_is_given() -> None:
    assert EnqueueOptions().begins(NOW) == NOW
    assert EnqueueOptions(run_at=NOW + MINUTE).begins(NOW) == NOW + MINUTE
    assert EnqueueOptions(run_at=NOW - MINUTE).begins(NOW) == NOW
    assert EnqueueOptions(run_at=-60).begins(NOW) == NOW


@pytest.mark.parametrize(
    "options",
    [
        {"deadline": 0},
        {"deadline": -1},
        {"deadline": float("nan")},
        {"deadline": timedelta.max},
        {"run_at": float("nan")},
        {"run_at": timedelta.max},
        {"run_at": datetime(2030, 1, 1, tzinfo=UTC).replace(tzinfo=None)},
    ],
    ids=str,
)
def test_invalid_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"deadline|run_at|NaN|finite"):
        EnqueueOptions(**options)


@pytest.mark.parametrize("field", ["user_id", "idempotency_key"])
def test_caller_text_that_cannot_be_stored_is_refused(field: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        submitted(Caller(**{field: "\udcff"}))
    assert refused.value.issues[0].field == field


def test_a_trace_id_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(InvalidPayload, match="trace_id"):
        submitted(trace_id="\udcff")


TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_job_belongs_to_the_given_trace_or_a_new_one() -> None:
    given = submitted(traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    assert (given.trace_id, given.traceparent) == (TRACE, f"00-{TRACE}-b7ad6b7169203331-01")
    assert submitted(trace_id="abc").trace_id == "abc"
    malformed = submitted(traceparent="00-zz-11-01")
    assert (len(malformed.trace_id), malformed.traceparent) == (32, None)
    assert submitted().trace_id != submitted().trace_id


def test_payloads_are_compared_by_fingerprint_or_by_value() -> None:
    def keyed(text: bytes, fingerprint: str) -> Submission:
        return sample_submission(type="tags", payload_json=text, fingerprint=fingerprint)

    one = keyed(b'["a","b"]', "1")
    assert same_payload(TAGS, one, keyed(b'"of an older release"', "1"))
    assert same_payload(TAGS, one, keyed(b'["b","a"]', "2"))
    assert not same_payload(TAGS, one, keyed(b'["b"]', "2"))
    assert not same_payload(TAGS, one, keyed(b'"of an older release"', "2"))

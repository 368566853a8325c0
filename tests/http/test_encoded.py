"""What many ask for is written once, and no more is kept than there is room for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncjobs import Job, JobStatus
from asyncjobs.http import documents
from asyncjobs.http.documents import Encoded, encode_job
from asyncjobs.testing import sample_job

MEGABYTE = 1024 * 1024


def sized(size: int, number: int = 1) -> Job:
    """Make a job with a result of so many bytes."""
    result = b'"%s"' % (b"x" * (size - 2))
    changes = {"status": JobStatus.COMPLETED, "result_json": result, "revision": number}
    return sample_job().model_copy(update=changes)


def kept(cache: Encoded) -> int:
    assert cache._documents._size == sum(map(len, cache._documents._kept.values()))
    return cache._documents._size


def test_a_document_is_written_once_per_revision(job: Job) -> None:
    cache = Encoded()
    first = cache.document(job)
    assert first == encode_job(job)
    assert cache.document(job.model_copy()) is first


def test_an_event_is_written_once_per_revision(job: Job) -> None:
    cache = Encoded()
    assert cache.event(job) is cache.event(job.model_copy())


def test_another_revision_is_another_document(job: Job) -> None:
    cache = Encoded()
    cache.document(job)
    later = job.model_copy(update={"revision": job.revision + 1, "progress": 77})
    assert json.loads(cache.document(later))["progress"] == 77


def test_jobs_are_not_mixed_up() -> None:
    cache, jobs = Encoded(), [sample_job() for _ in range(50)]
    for _ in range(2):
        assert [json.loads(cache.document(job))["jobId"] for job in jobs] == [
            one.id for one in jobs
        ]


def test_an_event_carries_the_version_and_a_document_without_pace(job: Job) -> None:
    lines = Encoded().event(job).decode().split("\n")
    assert lines[0] == f"id: {job.version}"
    found = json.loads(lines[1].removeprefix("data: "))
    assert found["status"] == job.status
    assert (found["retryAfter"], found["position"]) == (None, None)


def test_the_oldest_are_forgotten_where_there_is_no_room() -> None:
    cache, jobs = Encoded(), [sized(MEGABYTE) for _ in range(12)]
    texts = [cache.document(job) for job in jobs]
    assert kept(cache) <= documents._MAX_CACHE_BYTES
    assert cache.document(jobs[-1]) is texts[-1]
    again = cache.document(jobs[0])
    assert again is not texts[0]
    assert again == texts[0]


def test_a_document_greater_than_the_room_is_served_and_not_kept() -> None:
    cache, huge = Encoded(), sized(documents._MAX_CACHE_BYTES + 1)
    first = cache.document(huge)
    assert len(json.loads(first)["result"]) == documents._MAX_CACHE_BYTES - 1
    assert kept(cache) == 0
    small = cache.document(sample_job())
    assert kept(cache) == len(small)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(2, 400)), max_size=60))
def test_whatever_is_asked_for_the_answer_is_right_and_the_room_is_kept(
    asked: list[tuple[int, int]],
) -> None:
    jobs = [sample_job() for _ in range(6)]
    cache = Encoded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_MAX_CACHE_BYTES", 2000)
        for which, size in asked:
            job = jobs[which].model_copy(
                update={"revision": size, "result_json": b"1" * size, "version": size}
            )
            assert cache.document(job) == encode_job(job)
            assert kept(cache) <= 2000

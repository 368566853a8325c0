"""Log records name their job, and each transition is logged once."""

from __future__ import annotations

import logging

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobLogFilter, job_log_fields
from asyncjobs.records.logging import owner_hash, working_on
from asyncjobs.testing import sample_job


def test_log_records_name_the_job_inside_and_outside_of_a_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(JobLogFilter())
    inside, job = sample_job(), JobContext(sample_job())
    logging.getLogger("app").info("outside")
    with working_on(inside):
        logging.getLogger("app").info("inside")
        job.log.info("own")
    told = {record.getMessage(): record.__dict__ for record in caplog.records}
    assert told["outside"]["job_id"] is None
    assert told["inside"]["job_id"] == inside.id
    assert told["inside"]["trace_id"] == inside.trace_id
    assert told["own"]["job_id"] == job.id
    assert told["own"]["name"] == "asyncjobs.job.export"


def test_job_log_fields_returns_the_fields_of_the_current_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(JobLogFilter())
    assert job_log_fields() == {}
    with working_on(sample_job(user_id="ada")):
        logging.getLogger("app").info("inside")
        told = job_log_fields()
    assert told == {name: vars(caplog.records[0])[name] for name in told}
    assert list(told) == ["job_id", "job_type", "attempt", "owner", "trace_id"]


@pytest.mark.anyio
async def test_each_transition_is_logged_once_with_fields_and_no_owner(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncjobs")

    @jobs.handler("nothing")
    async def nothing(_payload: None, _job: JobContext) -> None: ...

    async with jobs:
        job = (await jobs.enqueue(nothing, None, user_id="zoe@example.org")).job
        await jobs.wait(job.id)
    records = [vars(record) for record in caplog.records if hasattr(record, "job_event")]
    assert [record["job_event"] for record in records] == ["enqueued", "started", "completed"]
    assert [record["attempt"] for record in records] == [0, 1, 1]
    for record in records:
        assert record["job_id"] == job.id
        assert record["job_type"] == "nothing"
        assert record["trace_id"] == job.trace_id
        assert record["owner"] == owner_hash("zoe@example.org")
        assert "zoe" not in str(record)  # no figures have a z


@pytest.mark.anyio
async def test_log_records_of_handlers_name_their_job_in_loop_and_threads(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    caplog.handler.addFilter(JobLogFilter())

    @jobs.handler("async")
    async def asynchronous(number: int, _job: JobContext) -> None:
        await anyio.to_thread.run_sync(logging.getLogger("app").info, number)

    @jobs.handler("def")
    def plain(number: int, _job: JobContext) -> None:
        logging.getLogger("app").info(number)

    async with jobs:
        made = [
            (await jobs.enqueue(("async", "def")[number % 2], number)).job for number in range(6)
        ]
        for job in made:
            await jobs.wait(job.id)
    told = {one.msg: vars(one)["job_id"] for one in caplog.records if one.name == "app"}
    assert told == {number: job.id for number, job in enumerate(made)}


def test_equal_owners_have_equal_hashes_and_no_owner_has_none() -> None:
    assert owner_hash("ada") == owner_hash("ada") != owner_hash("bob")
    assert owner_hash(None) is None

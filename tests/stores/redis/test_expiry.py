"""Jobs that the server expires if no process has maintained them for long."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncjobs import AsyncJobs, Settings
from asyncjobs.core import lifecycle
from asyncjobs.core.job import MAINTENANCE_LANE, Job, JobError, JobStatus, new_job_id
from asyncjobs.core.labels import label_of_batch
from asyncjobs.errors import UnknownJob
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, change_of, ended, failed, ids
from tests.stores.redis.keys import key_of
from tests.waiting import until

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
AFTER = NOW + 30 * DAY
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
QUICK = Settings(sweep_interval=timedelta(seconds=0.01), poll_interval=timedelta(seconds=0.01))

Expire = Callable[..., None]


@pytest.fixture
def expire(store: RedisStore, tell: Any) -> Expire:
    """Let the server expire some jobs."""

    def now(*jobs: Job) -> None:
        for job in jobs:
            assert tell("PEXPIREAT", key_of(store, f"job:{job.id}"), 1) == 1

    return now


# what expires, and when


def by_completion(job: Job) -> Job:
    return lifecycle.complete(begun(job), LATER, token="t", result=b"1")


def by_failure(job: Job) -> Job:
    error = JobError(code="bad_input", message="No such file.")
    return lifecycle.fail(begun(job), LATER, token="t", error=error)


def by_cancellation(job: Job) -> Job:
    return lifecycle.cancel(job, LATER)


ENDS = [by_completion, by_failure, by_cancellation]


@pytest.mark.parametrize("end", ENDS)
async def test_a_finished_job_expires_a_day_after_its_retention(
    store: RedisStore, tell: Any, end: Callable[[Job], Job]
) -> None:
    job, copied = sample_job(), end(sample_job())
    done = end(job)
    async with store:
        await store.insert([job, copied])
        assert list(await store.replace([Change(done, job.revision)])) == [True]
    for one in (done, copied):
        assert one.expires_at is not None
        assert expiry_of(tell, store, one) == one.expires_at + DAY


@pytest.mark.parametrize("end", ENDS)
async def test_a_job_without_a_retention_never_expires(
    store: RedisStore, tell: Any, end: Callable[[Job], Job]
) -> None:
    job, copied = sample_job(retention=None), end(sample_job(retention=None))
    async with store:
        await store.insert([job, copied])
        assert list(await store.replace([Change(end(job), job.revision)])) == [True]
    assert expiry_of(tell, store, job) is expiry_of(tell, store, copied) is None


async def test_a_job_that_waits_or_runs_does_not_expire(store: RedisStore, tell: Any) -> None:
    job = sample_job()
    started = begun(job)
    done = lifecycle.complete(started, LATER, token="t", result=b"1")
    again = started.model_copy(update={"revision": done.revision + 1})
    async with store:
        await store.insert([job])
        assert expiry_of(tell, store, job) is None
        await store.replace([Change(started, job.revision)])
        await store.take([MAINTENANCE_LANE], now=AFTER, until=AFTER + DAY, limit=1)
        assert expiry_of(tell, store, job) is None
        await store.replace([Change(done, started.revision)])
        assert expiry_of(tell, store, job) is not None
        await store.replace([Change(again, done.revision)])
        assert expiry_of(tell, store, job) is None


async def test_a_job_with_a_pending_callback_is_kept_until_it_is_given_up(
    store: RedisStore, tell: Any
) -> None:
    job = sample_job(callback_url="https://hooks.example.com/ended", retention=timedelta(hours=1))
    async with store:
        await store.insert([job])
        done = await ended(store, job, b"1")
        assert expiry_of(tell, store, job) == lifecycle.callback_end(done) + DAY
        told = lifecycle.call_back(done, LATER)
        await store.replace([Change(told, done.revision)])
    assert told.expires_at is not None
    assert expiry_of(tell, store, job) == told.expires_at + DAY


async def test_a_write_keeps_a_job_for_a_day_after_an_old_retention(
    store: RedisStore, tell: Any
) -> None:
    job = sample_job(created_at=LONG_AGO)
    done = lifecycle.cancel(job, LONG_AGO)
    async with store:
        await store.insert([done])
        [found] = await store.get([job.id])
        assert found == done
        now = await store.now()
    expiry = expiry_of(tell, store, job)
    assert expiry is not None
    assert timedelta(minutes=-5) < expiry - now - DAY < timedelta(minutes=5)


# remains of an expired job


async def test_every_call_treats_an_expired_job_as_unknown(
    store: RedisStore, expire: Expire
) -> None:
    gone, kept = sample_job(user_id="ann"), sample_job(user_id="ann")
    async with store:
        await store.insert([gone, kept])
        done, last = await ended(store, gone, b"1"), await ended(store, kept, b"2")
        expire(done)
        assert list(await store.get([gone.id, kept.id])) == [None, last]
        assert list(await store.replace([Change(done, done.revision)])) == [False]
        which = Selection("ann", gone.type, JobStatus.COMPLETED)
        for selection in (which, Selection(type=gone.type, status=which.status), Selection()):
            assert ids((await store.list(selection, limit=9)).jobs) == [kept.id]
        await store.delete([gone.id])
        assert ids(await store.take([MAINTENANCE_LANE], now=AFTER, until=AFTER, limit=9)) == [
            kept.id
        ]


OWNERS = (None, "", "ann", "{b}", 'a "b" [c]', "Zoë 🌍")


async def test_a_call_that_finds_remains_of_a_job_removes_all_of_them(
    store: RedisStore, tell: Any, expire: Expire
) -> None:
    jobs = [
        sample_job(user_id=owner, idempotency_key=key, type=kind)
        for owner in OWNERS
        for key, kind in ((None, "export"), ("k", "export"), ("a b\u2028", "a b"))
    ]
    batch = new_job_id()
    members = [
        sample_job(user_id=owner, idempotency_key=one, batch=one, tags=("a\tb", "ü"))
        for owner in OWNERS
        for one in (None, batch, new_job_id())
    ]
    async with store:
        await store.insert([*jobs, *members])
        done = [await ended(store, job, b"1") for job in jobs]
        await store.replace([change_of(job, failed(job)) for job in members])
        expire(*done, *members)
        assert (
            list(await store.take([MAINTENANCE_LANE], now=AFTER, until=AFTER + DAY, limit=9)) == []
        )
        assert list(await store.tally([label_of_batch(batch)])) == [{}]
    keys = tell("KEYS", f"{{{store.namespace}}}*")
    assert sorted(keys) == sorted([key_of(store, "schema"), key_of(store, "sequence")])


async def test_a_list_of_a_label_forgets_expired_jobs_and_keeps_counters_of_the_others(
    store: RedisStore, tell: Any, expire: Expire
) -> None:
    batch = new_job_id()
    gone, last = (by_failure(sample_job(batch=batch, tags=("a",))) for _ in "12")
    which = Selection(status=JobStatus.FAILED, batch=batch)
    counted = {"total": 2, "failed": 2, "progress": 200}
    async with store:
        await store.insert([gone, last])
        expire(gone)
        assert ids((await store.list(which, limit=9)).jobs) == [last.id]
        assert tell("ZCARD", key_of(store, f"label:failed:{batch}")) == 1
        await store.take([MAINTENANCE_LANE], now=AFTER, until=AFTER + DAY, limit=9)
        assert tell("ZCARD", key_of(store, f"label:batch:{batch}")) == 1
        assert list(await store.tally([label_of_batch(batch)])) == [counted]
        await store.delete([last.id])
        assert list(await store.tally([label_of_batch(batch)])) == [{}]
    keys = tell("KEYS", f"{{{store.namespace}}}*")
    assert sorted(keys) == sorted([key_of(store, "schema"), key_of(store, "sequence")])


async def test_jobs_behind_many_expired_ones_are_found(
    store: RedisStore, tell: Any, expire: Expire
) -> None:
    jobs = [lifecycle.cancel(sample_job(user_id="ann"), NOW) for _ in range(300)]
    last = lifecycle.cancel(sample_job(), LATER)
    async with store:
        await store.insert([*jobs, last])
        expire(*jobs)
        assert ids((await store.list(Selection("ann"), limit=9)).jobs) == []
        assert tell("EXISTS", key_of(store, "owner:ann")) == 0
        taken = await store.take([MAINTENANCE_LANE], now=AFTER, until=AFTER + DAY, limit=1)
        assert ids(taken) == [last.id]
        assert (
            tell("ZCARD", key_of(store, "all"))
            == tell("ZCARD", key_of(store, f"due:{MAINTENANCE_LANE}"))
            == 1
        )


async def test_a_key_whose_job_has_expired_is_free_and_stays_with_its_new_job(
    store: RedisStore, expire: Expire
) -> None:
    old, new = (sample_job(user_id="ann", idempotency_key="k") for _ in "12")
    async with store:
        await store.insert([old])
        expire(await ended(store, old, b"1"))
        assert list(await store.insert([new])) == [new]
        assert list(await store.take([MAINTENANCE_LANE], now=AFTER, until=AFTER, limit=9)) == []
        assert list(await store.insert([old])) == [new]
        assert ids((await store.list(Selection("ann"), limit=9)).jobs) == [new.id]


async def test_a_job_that_is_inserted_again_after_its_expiry_is_complete(
    store: RedisStore, tell: Any, expire: Expire
) -> None:
    job = by_completion(sample_job(user_id="ann", idempotency_key="k"))
    async with store:
        await store.insert([job])
        expire(job)
        await store.insert([job])
        assert tell("ZCARD", key_of(store, f"due:{MAINTENANCE_LANE}")) == 2
        assert ids(await store.take([MAINTENANCE_LANE], now=AFTER, until=AFTER + DAY, limit=9)) == [
            job.id
        ]
        assert tell("ZCARD", key_of(store, f"due:{MAINTENANCE_LANE}")) == 1
        for which in (Selection("ann"), Selection(None, job.type, job.status), Selection()):
            assert ids((await store.list(which, limit=9)).jobs) == [job.id]
        assert ids(await store.insert([sample_job(user_id="ann", idempotency_key="k")])) == [job.id]


async def test_an_entry_in_a_lane_that_its_job_has_left_is_removed(
    store: RedisStore, tell: Any
) -> None:
    job = sample_job()
    async with store:
        await store.insert([job])
        [entry] = tell("ZRANGE", key_of(store, f"due:{LANE}"), 0, -1)
        await store.replace([Change(begun(job), job.revision)])
        tell("ZADD", key_of(store, f"due:{LANE}"), 1, entry)
        assert list(await store.take([LANE], now=LATER, until=AFTER, limit=9)) == []
        assert tell("EXISTS", key_of(store, f"due:{LANE}")) == 0
        assert ids(await store.take([MAINTENANCE_LANE], now=LATER, until=AFTER, limit=9)) == [
            job.id
        ]


async def test_maintenance_removes_remains_of_jobs_that_expired_in_downtime(
    store: RedisStore, redis_url: str, tell: Any, expire: Expire
) -> None:
    old = [sample_job(created_at=LONG_AGO, user_id="ann", idempotency_key=key) for key in "12"]
    async with store:
        await store.insert([lifecycle.cancel(job, LONG_AGO) for job in old])
    expire(old[0])
    left = [key_of(store, "all"), key_of(store, "held"), key_of(store, "owner:ann")]
    assert tell("EXISTS", *left) == 3
    async with AsyncJobs(f"{redis_url}?namespace={store.namespace}", settings=QUICK) as jobs:
        with pytest.raises(UnknownJob):
            await jobs.find(old[0].id)
        await until(lambda: not tell("EXISTS", *left))


def expiry_of(tell: Any, store: RedisStore, job: Job) -> datetime | None:
    """Read when the server expires a job, to the millisecond, like the times of the job."""
    found = tell("PEXPIRETIME", key_of(store, f"job:{job.id}"))
    assert found != -2
    if found == -1:
        return None
    moment = datetime.fromtimestamp(found / 1000, UTC)
    return moment.replace(microsecond=round(moment.microsecond, -3) + NOW.microsecond % 1000)

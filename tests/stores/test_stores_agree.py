"""Any sequence of calls: every store behaves like a few lines of plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from asyncjobs.core import lifecycle
from asyncjobs.core.job import (
    MAINTENANCE_LANE,
    Job,
    JobError,
    JobId,
    JobStatus,
    Lease,
    Progress,
    new_job_id,
)
from asyncjobs.core.labels import Tally, label_of_batch, tallies_of
from asyncjobs.protocols import HOLD, Listing, Selection, Store, Tallies, power_of
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import ManualClock, sample_job
from asyncjobs.testing.samples import change_of
from custom_store import FolderStore
from tests.stores.machines import OnPostgres, OnRedis, folder_until

LANES = ("high", "default", MAINTENANCE_LANE)
BATCHES = (new_job_id(), new_job_id())
PAUSES = st.timedeltas(timedelta(microseconds=1), timedelta(minutes=1))


class Agreement(RuleBasedStateMachine):
    """A store beside a model of it: jobs in a dict, in insertion order."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.model: dict[JobId, Job] = {}
        self.tallies: dict[JobId, Counter[str]] = {batch: Counter() for batch in BATCHES}
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.store = self.make_store()
        self.opened = self.portal.wrap_async_context_manager(self.store)
        self.opened.__enter__()

    def make_store(self) -> Store:
        return MemoryStore()

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)
        self.stack.close()

    @rule(
        target=jobs,
        key=st.sampled_from([None, None, "k1", "k2"]),
        owner=st.sampled_from([None, "ann"]),
        queue=st.sampled_from(["high", "default"]),
        retention=st.none() | PAUSES,
        tags=st.sampled_from([(), ("a",), ("b", "a")]),
        batch=st.sampled_from([None, *BATCHES]),
    )
    def insert(
        self,
        key: str | None,
        owner: str | None,
        queue: str,
        retention: timedelta | None,
        tags: tuple[str, ...],
        batch: JobId | None,
    ) -> JobId:
        job = sample_job(
            created_at=self.clock.now(),
            idempotency_key=key,
            user_id=owner,
            queue=queue,
            retention=retention,
            tags=tags,
            batch=batch,
        )
        same = [
            stored
            for stored in self.model.values()
            if key is not None and (stored.user_id, stored.idempotency_key) == (owner, key)
        ]
        expected = same[0] if same else self.model.setdefault(job.id, job)
        assert list(self.portal.call(self.store.insert, [job])) == [expected]
        if not same:
            self.count(tallies_of(job))
        return expected.id

    def count(self, changes: Mapping[str, Tally] | None) -> None:
        for batch, tally in self.tallies.items():
            tally.update((changes or {}).get(label_of_batch(batch), {}))

    @rule(
        job_id=jobs,
        move=st.sampled_from(["complete", "release", "report", "fail"]),
        seconds=st.integers(1, 30),
        stale=st.booleans(),
    )
    def move(self, job_id: JobId, move: str, seconds: int, stale: bool) -> None:
        job = self.model.get(job_id)
        if job is None or job.status.terminal:
            return
        moved = self.next_state(job, move, seconds)
        change = replace(change_of(job, moved), expected_revision=job.revision - stale)
        assert list(self.portal.call(self.store.replace, [change])) == [not stale]
        if not stale:
            self.model[job_id] = moved
            self.count(change.tallies)

    def next_state(self, job: Job, move: str, seconds: int) -> Job:
        now = self.clock.now()
        if job.lease is None:
            until = now + timedelta(seconds=seconds)
            return lifecycle.start(job, now, Lease(worker="w", token="t", until=until))
        match move:
            case "release":
                return lifecycle.release(job, now, token="t")
            case "report":
                return lifecycle.report(job, Progress(percent=seconds), token="t")
            case "fail":
                error = JobError(code="broken", message="It broke.")
                return lifecycle.fail(job, now, token="t", error=error)
            case _:
                return lifecycle.complete(job, now, token="t", result=b'"%d"' % seconds)

    @rule(lanes=st.sets(st.sampled_from(LANES)), until=PAUSES, limit=st.integers(1, 4))
    def take(self, lanes: set[str], until: timedelta, limit: int) -> None:
        now = self.clock.now()
        due = [job for job in self.model.values() if job.lane in lanes and is_due(job, now)]
        due.sort(key=lambda job: job.due_at or now)
        expected = [job.model_copy(update={"due_at": now + until}) for job in due[:limit]]
        taken = self.portal.call(self.take_from_store, sorted(lanes), now, now + until, limit)
        assert taken == expected
        self.model.update({job.id: job for job in expected})

    async def take_from_store(
        self, lanes: list[str], now: datetime, until: datetime, limit: int
    ) -> list[Job]:
        return list(await self.store.take(lanes, now=now, until=until, limit=limit))

    @rule(job_id=jobs, most=st.integers(0, 4))
    def count_before(self, job_id: JobId, most: int) -> None:
        listing, job = power_of(self.store, Listing), self.model.get(job_id)
        if listing is not None and job is not None:
            until = self.clock.now() + HOLD
            count = self.portal.call(partial(listing.count_before, job, until=until, most=most))
            assert count == min(len(self.in_front_of(job)), most)

    def in_front_of(self, job: Job) -> list[JobId]:
        now = self.clock.now()
        lane = [
            one for one in self.model.values() if one.lane == job.lane and is_due(one, now + HOLD)
        ]
        waiting = [one for one in lane if is_due(one, now)]
        held = [one for one in lane if not is_due(one, now)]
        # Held jobs first; each sort is stable.
        order = sorted(held, key=lambda one: one.due_at or now)
        order += sorted(waiting, key=lambda one: one.due_at or now)
        places = [one.id for one in order]
        if job.due_at is None:
            return []
        return places[: places.index(job.id)] if job.id in places else [one.id for one in held]

    @rule(job_id=jobs)
    def delete(self, job_id: JobId) -> None:
        self.model.pop(job_id, None)
        self.portal.call(self.store.delete, [job_id])
        for batch, tally in self.tallies.items():
            if not any(job.batch == batch for job in self.model.values()):
                tally.clear()

    @rule(
        owner=st.sampled_from([None, "ann"]),
        status=st.sampled_from([None, JobStatus.FAILED, JobStatus.PENDING]),
        tag=st.sampled_from([None, "a", "b", "c"]),
        batch=st.sampled_from([None, *BATCHES]),
        members=st.booleans(),
        limit=st.integers(1, 3),
    )
    def list_jobs(
        self,
        owner: str | None,
        status: JobStatus | None,
        tag: str | None,
        batch: JobId | None,
        members: bool,
        limit: int,
    ) -> None:
        listing = power_of(self.store, Listing)
        if listing is not None:
            which = Selection(
                owner, None, status, None if batch else tag, batch, members or batch is not None
            )
            expected = [job.narrow() for job in self.model.values() if which.fits(job)]
            found: list[Job] = []
            after = None
            while not found or after is not None:
                page = self.portal.call(partial(listing.list, which, limit=limit, after=after))
                found += page.jobs
                after = page.next
                if not page.jobs:
                    break
            assert found == expected[::-1]

    @rule(by=PAUSES)
    def time_passes(self, by: timedelta) -> None:
        self.clock.advance(by)

    @precondition(lambda self: bool(self.model))
    @rule()
    def reopen(self) -> None:
        self.opened.__exit__(None, None, None)
        self.opened = self.portal.wrap_async_context_manager(self.store)
        self.opened.__enter__()

    @invariant()
    def reads_agree(self) -> None:
        found = self.portal.call(self.store.get, list(self.model))
        assert list(found) == list(self.model.values())

    @invariant()
    def tallies_agree(self) -> None:
        counting = power_of(self.store, Tallies)
        if counting is not None:
            labels = [label_of_batch(batch) for batch in self.tallies]
            found = self.portal.call(counting.tally, labels)
            assert [+Counter(tally) for tally in found] == [+one for one in self.tallies.values()]


class SqliteAgreement(Agreement):
    """The same on a file."""

    def make_store(self) -> Store:
        return SqliteStore(folder_until(self.stack) / "jobs.db")


class FolderAgreement(Agreement):
    """The same on the example of a custom store."""

    def make_store(self) -> Store:
        return FolderStore(folder_until(self.stack))


class RedisAgreement(OnRedis, Agreement):
    """The same on a server."""


class PostgresAgreement(OnPostgres, Agreement):
    """The same on a server."""


def is_due(job: Job, now: datetime) -> bool:
    return job.due_at is not None and job.due_at <= now


LIMITS = settings(max_examples=20, stateful_step_count=30)

TestMemoryAgreement = Agreement.TestCase
TestMemoryAgreement.settings = LIMITS
TestSqliteAgreement = SqliteAgreement.TestCase
TestSqliteAgreement.settings = LIMITS
TestFolderAgreement = FolderAgreement.TestCase
TestFolderAgreement.settings = LIMITS
TestRedisAgreement = pytest.mark.usefixtures("redis_for_machines")(RedisAgreement.TestCase)
TestRedisAgreement.settings = LIMITS
TestPostgresAgreement = pytest.mark.usefixtures("postgres_for_machines")(PostgresAgreement.TestCase)
TestPostgresAgreement.settings = LIMITS

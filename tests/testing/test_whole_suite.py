"""Every rule of the suite for stores is broken by some store, which fails it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import anyio.lowlevel
import pytest

from asyncjobs.core.job import Job, JobId
from asyncjobs.protocols import Change
from asyncjobs.stores.memory import MemoryStore
from tests.stores import test_conformance
from tests.testing import test_store_rules
from tests.testing.suites import StoreRules, keeps, named, rules_of


class WritesSubmissions(MemoryStore):
    """Overwrites both halves of a job."""

    def _replace(self, change: Change) -> bool:
        done = super()._replace(change)
        if done:
            self._put(change.job)
        return done


class TakesByTheQueue(MemoryStore):
    """Finds jobs by the queue of their submission, which does not change."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        elsewhere = {job.lane for job in self._jobs.values() if job.queue in lanes}
        return await super().take([*elsewhere], now=now, until=until, limit=limit)


class AddsAnEntryForEachWrite(MemoryStore):
    """Leaves a job's former entry in the index of due jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[datetime | None, JobId]] = []

    def _put(self, job: Job) -> None:
        self.entries.append((job.due_at, job.id))
        super()._put(job)

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        ids = [job_id for due_at, job_id in self.entries if self._jobs[job_id].due_at == due_at]
        await super().take(lanes, now=now, until=until, limit=limit)
        return [self._jobs[job_id] for job_id in ids]


class ReturnsTheJobAsItCame(MemoryStore):
    """Caches the answer to a submission with a key, and repeats it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Job] = {}

    def _insert(self, job: Job) -> Job:
        stored = super()._insert(job)
        return self.answers.setdefault(job.idempotency_key or job.id, stored)


class KeepsResultsByRow(MemoryStore):
    """Finds a result by a row number, which another job gets after a deletion."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[JobId, int] = {}
        self.results: dict[int, bytes] = {}

    def _put(self, job: Job) -> None:
        row = self.rows.setdefault(job.id, len(self.rows))
        if job.result_json is not None:
            self.results[row] = job.result_json
        super()._put(job.changed(result_json=self.results.get(row)))

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        for job_id in ids:
            self.rows.pop(job_id, None)
        return await super().delete(ids)


class ReplacesAllOrNone(MemoryStore):
    """Refuses a whole call for one stale change."""

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        found = await self.get([change.job.id for change in changes])
        revisions = [job and job.revision for job in found]
        if revisions != [change.expected_revision for change in changes]:
            return [False for _ in changes]
        return await super().replace(changes)


class TakesForGood(MemoryStore):
    """Removes a taken job from its index."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken = await super().take(lanes, now=now, until=until, limit=limit)
        for job in taken:
            self._put(job.changed(due_at=None))
        return taken


class ReplacesWhatIsNotThere(MemoryStore):
    """Inserts a job that a change does not find."""

    def _replace(self, change: Change) -> bool:
        if change.job.id not in self._jobs:
            self._insert(change.job)
            return True
        return super()._replace(change)


class AppliesChangesBackwards(MemoryStore):
    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return [*await super().replace(changes[::-1])][::-1]


class AnswersInItsOwnOrder(MemoryStore):
    """Returns the jobs of a read in the order of its index, each once."""

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return [job for job_id, job in self._jobs.items() if job_id in ids]


class Overwrites(MemoryStore):
    """Replaces a stored job by a new one of the same id."""

    def _insert(self, job: Job) -> Job:
        stored = super()._insert(job)
        if stored.id == job.id:
            self._put(job)
        return job if stored.id == job.id else stored


class CutsResults(MemoryStore):
    """Keeps the first four mebibytes of a result."""

    def _put(self, job: Job) -> None:
        super()._put(job.changed(result_json=job.result_json and job.result_json[: 4 << 20]))


class RefusesEmptyCalls(MemoryStore):
    """Writes SQL in which an empty list is a syntax error."""

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        if not ids:
            raise ValueError("syntax error at or near )")
        return await super().get(ids)


class LooksThenInserts(MemoryStore):
    """Looks up the key in one step, and adds the job in another."""

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        keys = {job.idempotency_key: job for job in self._jobs.values()}
        await anyio.lowlevel.checkpoint()
        new = [job for job in jobs if job.idempotency_key not in keys]
        for job in new:
            self._keys.clear()
            self._insert(job)
        return [keys.get(job.idempotency_key, job) for job in jobs]


class LooksForAllKeysFirst(MemoryStore):
    """Looks up the keys of a call before it adds its jobs."""

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        keys = {job.idempotency_key: job for job in self._jobs.values()}
        return [
            keys[key] if (key := job.idempotency_key) in keys else self.add(job) for job in jobs
        ]

    def add(self, job: Job) -> Job:
        self._keys.clear()
        return self._insert(job)


class TakesOneByOne(MemoryStore):
    """Takes until the limit is reached, which may be the same job again."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken: list[Job] = []
        for _ in range(limit):
            taken += await super().take(lanes, now=now, until=until, limit=1)
        return taken


class RefusesEveryChange(MemoryStore):
    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return [False for _ in changes]


class LimitsEachLane(MemoryStore):
    """Takes up to the limit from each lane."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken: list[Job] = []
        for lane in lanes:
            taken += await super().take([lane], now=now, until=until, limit=limit)
        return taken


class TakesInTheOrderOfInsertion(MemoryStore):
    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken = await super().take(lanes, now=now, until=until, limit=limit)
        return sorted(taken, key=lambda job: self._order[job.id])


class TakesWhatIsDueNever(MemoryStore):
    """Treats a missing time as the earliest of all."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        never = [job for job in self._jobs.values() if job.due_at is None and job.lane in lanes]
        return [*never, *await super().take(lanes, now=now, until=until, limit=limit)][:limit]


BROKEN: list[tuple[type[MemoryStore], str]] = [
    (WritesSubmissions, "test_a_change_writes_the_state_and_leaves_what_was_submitted"),
    (TakesByTheQueue, "test_a_job_is_taken_where_its_newest_state_puts_it"),
    (
        AddsAnEntryForEachWrite,
        "test_a_job_that_was_written_twice_with_one_moment_is_taken_once",
    ),
    (ReturnsTheJobAsItCame, "test_a_key_names_the_job_as_it_stands"),
    (KeepsResultsByRow, "test_a_new_job_has_nothing_of_a_deleted_one"),
    (ReplacesAllOrNone, "test_a_refused_change_does_not_touch_the_others"),
    (
        test_conformance.CountsTakes,
        "test_a_taken_job_can_be_replaced_by_what_was_read_before",
    ),
    (TakesForGood, "test_a_taken_job_comes_up_again_at_the_new_moment"),
    (ReplacesWhatIsNotThere, "test_an_unknown_job_cannot_be_replaced"),
    (AppliesChangesBackwards, "test_changes_of_one_call_to_one_job_apply_in_order"),
    (AnswersInItsOwnOrder, "test_get_answers_in_the_order_of_the_question"),
    (Overwrites, "test_insert_keeps_the_stored_job_of_the_same_id"),
    (CutsResults, "test_large_payloads_and_results_come_back_whole"),
    (RefusesEmptyCalls, "test_nothing_asked_is_nothing_answered"),
    (LooksThenInserts, "test_of_concurrent_submissions_with_one_key_one_is_stored"),
    (LooksForAllKeysFirst, "test_of_two_jobs_with_one_key_in_one_call_the_first_wins"),
    (TakesOneByOne, "test_one_call_takes_a_job_once_whatever_the_new_moment"),
    (RefusesEveryChange, "test_replace_writes_where_the_revision_is_the_expected_one"),
    (LimitsEachLane, "test_take_keeps_to_its_lanes_and_its_limit"),
    (TakesInTheOrderOfInsertion, "test_take_picks_what_is_due_longest_first"),
    (TakesWhatIsDueNever, "test_what_is_due_never_is_never_taken"),
]


@pytest.mark.parametrize(("store", "rule"), BROKEN, ids=named)
def test_a_broken_store_fails_the_rule_it_breaks(store: type[MemoryStore], rule: str) -> None:
    assert not keeps(StoreRules, rule, lambda: {"store": store()})


def test_every_rule_is_broken_by_some_store() -> None:
    tables = (BROKEN, test_conformance.BROKEN, test_store_rules.BROKEN)
    broken = {rule for table in tables for _, rule in table}
    broken |= {test_store_rules.EXACTLY, test_store_rules.JOINED}
    assert {*rules_of(StoreRules, "store")} == broken

"""The conformance suite is itself tested: broken stores must fail it, by the rule they break."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from itertools import count, cycle
from types import TracebackType

import anyio
import anyio.lowlevel
import pytest

from asyncjobs.errors import StoreUnavailable
from asyncjobs.model import Job, JobId
from asyncjobs.protocols import Change, Store
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import ClockedConformance, StoreConformance
from asyncjobs.testing.samples import LATER, NOW

Rule = Callable[[StoreConformance, Store], Awaitable[None]]

RULES: dict[str, Rule] = {
    name: function
    for name, function in inspect.getmembers(StoreConformance, inspect.iscoroutinefunction)
    if name.startswith("test_")
}


class AcceptsLostUpdates(MemoryStore):
    """Writes whatever comes, without comparing revisions."""

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        for change in changes:
            if change.job.id in self._jobs:
                self._put(change.job)
        return [change.job.id in self._jobs for change in changes]


class ComparesThenWrites(MemoryStore):
    """Compares the revision in one step and writes in another."""

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        found = [self._jobs.get(change.job.id) for change in changes]
        await anyio.lowlevel.checkpoint()
        fits = [
            job is not None and job.revision == change.expected_revision
            for job, change in zip(found, changes, strict=True)
        ]
        for change, fit in zip(changes, fits, strict=True):
            if fit:
                self._put(change.job)
        return fits


class TakesTwice(MemoryStore):
    """Reads what is due in one step and moves it in another."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        due = [job for job in self._jobs.values() if job.lane in lanes and _due(job, now)][:limit]
        await anyio.lowlevel.checkpoint()
        moved = [job.model_copy(update={"due_at": until}) for job in due]
        for job in moved:
            self._put(job)
        return moved


class TakesEarly(MemoryStore):
    """Takes what is not yet due."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        soon = now + timedelta(milliseconds=1)
        return await super().take(lanes, now=soon, until=until, limit=limit)


class TakesNewestFirst(MemoryStore):
    """Starves the job that has waited for longest."""

    def __init__(self) -> None:
        super().__init__()
        self._counter = (-number for number in count())  # type: ignore[assignment]


class ForgetsOnReopen(MemoryStore):
    """Promises to keep jobs and keeps them until it is closed."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__init__()  # type: ignore[misc]


class HandsOutLiveJobs(MemoryStore):
    """Keeps one object per job, changes it in place, and gives it to everyone."""

    def _put(self, job: Job) -> None:
        live = self._jobs.get(job.id)
        if live is None:
            super()._put(job.model_copy())
        else:
            vars(live).update(vars(job))
            super()._put(live)


class IgnoresKeys(MemoryStore):
    """Makes a second job for an idempotency key."""

    def _insert(self, job: Job) -> Job:
        self._keys.clear()
        return super()._insert(job)


class MixesUpOwners(MemoryStore):
    """Lets one user's idempotency key find another user's job."""

    def _insert(self, job: Job) -> Job:
        key = next((k for k in self._keys if k[2] == job.idempotency_key), None)
        return self._jobs[self._keys[key]] if key else super()._insert(job)


class CountsTakes(MemoryStore):
    """Changes more than the due moment when it takes."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken = await super().take(lanes, now=now, until=until, limit=limit)
        counted = [job.model_copy(update={"revision": job.revision + 1}) for job in taken]
        for job in counted:
            self._put(job)
        return counted


class KeepsKeysOfTheDead(MemoryStore):
    """Forgets a job and keeps its idempotency key."""

    async def delete(self, ids: Sequence[JobId], /) -> None:
        keys = dict(self._keys)
        await super().delete(ids)
        self._keys = keys

    def _insert(self, job: Job) -> Job:
        dead = job.idempotency_key and self._keys.get((None, job.type, job.idempotency_key))
        if dead and dead not in self._jobs:
            raise StoreUnavailable("broken", "the key names no job")
        return super()._insert(job)


def _due(job: Job, now: datetime) -> bool:
    return job.due_at is not None and job.due_at <= now


BROKEN: list[tuple[type[MemoryStore], str]] = [
    (AcceptsLostUpdates, "test_a_stale_change_is_refused_and_changes_nothing"),
    (ComparesThenWrites, "test_of_racing_changes_one_wins"),
    (TakesTwice, "test_racing_takers_never_get_the_same_job"),
    (TakesEarly, "test_a_job_is_due_at_its_very_moment_and_not_before"),
    (TakesNewestFirst, "test_jobs_due_at_one_moment_are_taken_in_the_order_they_came"),
    (ForgetsOnReopen, "test_closing_and_opening_again_loses_nothing"),
    (HandsOutLiveJobs, "test_what_was_handed_out_does_not_change"),
    (IgnoresKeys, "test_an_idempotency_key_is_good_for_one_job"),
    (MixesUpOwners, "test_keys_are_apart_by_owner_and_type"),
    (CountsTakes, "test_take_moves_the_due_moment_and_nothing_else"),
    (KeepsKeysOfTheDead, "test_deleting_frees_the_idempotency_key"),
]


@pytest.mark.parametrize(
    ("store", "rule"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_store_fails_the_rule_it_breaks(store: type[MemoryStore], rule: str) -> None:
    assert rule in broken_rules(store)


def test_a_whole_store_fails_no_rule() -> None:
    assert broken_rules(MemoryStore) == []


class ManyClocks(MemoryStore):
    """Tells some times, one after the other."""

    def __init__(self, *times: datetime) -> None:
        super().__init__()
        self._times = cycle(times)

    async def now(self) -> datetime:
        return next(self._times)


@pytest.mark.parametrize(
    ("times", "rule"),
    [
        ([NOW.replace(tzinfo=None)], ClockedConformance.test_the_store_s_time_is_aware_and_in_utc),
        ([NOW], ClockedConformance.test_the_store_s_time_goes_on),
        ([NOW, LATER], ClockedConformance.test_the_store_s_time_goes_on),
    ],
    ids=["naive", "standing", "jumping back"],
)
def test_a_broken_clock_fails_the_rule_it_breaks(
    times: list[datetime], rule: Callable[[ClockedConformance, Store], Awaitable[None]]
) -> None:
    with pytest.raises(AssertionError):
        anyio.run(rule, ClockedConformance(), ManyClocks(*times))


def broken_rules(store: Callable[[], Store]) -> list[str]:
    """Name the rules of the suite that a new store of this kind breaks."""
    return [name for name, rule in RULES.items() if not keeps(rule, store())]


def keeps(rule: Rule, store: Store) -> bool:
    try:
        anyio.run(rule, StoreConformance(), store)
    except (Exception, BaseExceptionGroup):  # noqa: BLE001  # however it fails
        return False
    return True

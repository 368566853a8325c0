"""Tests of the conformance suite: each broken store fails the rule that it breaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count, cycle
from types import TracebackType

import anyio
import anyio.lowlevel
import pytest

from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change, Page, Selection, Store, StoreClock
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import ListingConformance, StoreClockConformance
from asyncjobs.testing.samples import LATER, NOW
from tests.testing.suites import StoreRules, keeps, named


class AcceptsLostUpdates(MemoryStore):
    """Writes without comparing revisions."""

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
    """Takes jobs that are not yet due."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        soon = now + timedelta(milliseconds=1)
        return await super().take(lanes, now=soon, until=until, limit=limit)


class TakesNewestFirst(MemoryStore):
    """Starves the job that has waited longest."""

    def __init__(self) -> None:
        super().__init__()
        self._counter = (-number for number in count())  # type: ignore[assignment]


class ForgetsOnReopen(MemoryStore):
    """Claims to be persistent and keeps jobs only until it is closed."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__init__()  # type: ignore[misc]


class HandsOutLiveJobs(MemoryStore):
    """Keeps one mutable object per job and returns it to everyone."""

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

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        keys = dict(self._keys)
        deleted = await super().delete(ids)
        self._keys = keys
        return deleted

    def _insert(self, job: Job) -> Job:
        dead = job.idempotency_key and self._keys.get((None, job.type, job.idempotency_key))
        if dead and dead not in self._jobs:
            raise StoreUnavailable("broken", "the key names no job")
        return super()._insert(job)


class FindsEveryJobItDeletes(MemoryStore):
    """Reports each job as deleted by this call."""

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        await super().delete(ids)
        return [True for _ in ids]


class DeletesInTwoSteps(MemoryStore):
    """Looks for the jobs in one step and deletes them in another."""

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        found = await self.get(ids)
        await super().delete(ids)
        return [job is not None for job in found]


class LosesErrors(MemoryStore):
    """Keeps no errors of attempts."""

    def _put(self, job: Job) -> None:
        super()._put(job.changed(errors_json=None))


class WritesStatesWhole(MemoryStore):
    """Treats wide data that a change leaves out as deleted."""

    def _replace(self, change: Change) -> bool:
        done = super()._replace(change)
        if done:
            wide = {name: getattr(change.job, name) for name in ("result_json", "errors_json")}
            self._put(self._jobs[change.job.id].changed(**wide))
        return done


class KeepsErrorsOfTheDead(MemoryStore):
    """Deletes a job but not the errors of its attempts."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: dict[JobId, bytes | None] = {}

    def _put(self, job: Job) -> None:
        errors = self._errors.setdefault(job.id, job.errors_json)
        if job.errors_json is not None:
            errors = self._errors[job.id] = job.errors_json
        super()._put(job.changed(errors_json=errors))


class ListsOldestFirst(MemoryStore):
    """Shows what was inserted first on the first page."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(which, limit=limit, after=after)
        return replace(page, jobs=[*reversed(page.jobs)])


class ListsByDate(MemoryStore):
    """Orders by creation time, by clocks that differ, instead of by insertion."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(which, limit=limit, after=after)
        newest = sorted(page.jobs, key=lambda job: job.created_at, reverse=True)
        return replace(page, jobs=newest)


class ListsPayloads(MemoryStore):
    """Reads megabytes of payloads and results for a page."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(which, limit=limit, after=after)
        return replace(page, jobs=[self._jobs[job.id] for job in page.jobs])


class ListsJobsAsTheyWere(MemoryStore):
    """Lists by an index that changes do not update."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[JobId, Job] = {}

    def _insert(self, job: Job) -> Job:
        return self._first.setdefault(job.id, super()._insert(job))

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        now, self._jobs = self._jobs, {**self._jobs, **self._first}
        page = await super().list(which, limit=limit, after=after)
        self._jobs = now
        return page


class TakesNoNameForAnyName(MemoryStore):
    """Returns all jobs to the user whose name is empty."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        which = replace(which, user_id=which.user_id or None)
        return await super().list(which, limit=limit, after=after)


class IgnoresTypes(MemoryStore):
    """Lists jobs of all types."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await super().list(replace(which, type=None), limit=limit, after=after)


class IgnoresStatuses(MemoryStore):
    """Lists jobs of all statuses."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await super().list(replace(which, status=None), limit=limit, after=after)


class PagesByOffset(MemoryStore):
    """Counts from the top, where new jobs arrive."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        start = int(after or 0)
        page = await super().list(which, limit=start + limit)
        return Page(page.jobs[start:], page.next and str(start + limit))


class RepeatsTheLast(MemoryStore):
    """Starts a page with the last job of the page before."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        again = after and str(int(after) + 1)
        return await super().list(which, limit=limit, after=again)


class LeadsToAnEmptyPage(MemoryStore):
    """Returns a next cursor for every full page."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(which, limit=limit, after=after)
        full = len(page.jobs) == limit
        return replace(page, next=str(self._order[page.jobs[-1].id]) if full else None)


class TakesAnyCursor(MemoryStore):
    """Starts at the first page if the cursor is malformed."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        known = after if after and after.isascii() and after.isdigit() else None
        return await super().list(which, limit=limit, after=known)


class LetsOutWhatParsingRaises(MemoryStore):
    """Raises its own error for a malformed cursor."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        known = None if after is None else str(int(after))
        return await super().list(which, limit=limit, after=known)


class ListsTheDead(MemoryStore):
    """Deletes a job and goes on listing it."""

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        jobs, order = dict(self._jobs), dict(self._order)
        deleted = await super().delete(ids)
        self._jobs, self._order = jobs, order
        return deleted


class CountsAllLanes(MemoryStore):
    """Counts the jobs of other queues, too."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        count_in_lane = super().count_before
        elsewhere = [one for one in self._jobs.values() if one.lane != job.lane]
        inside = await count_in_lane(job, until=until, most=most)
        return inside + len(elsewhere)


class CountsTheJobItself(MemoryStore):
    """Counts from one."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        return await super().count_before(job, until=until, most=most) + 1


class CountsAsTheyCame(MemoryStore):
    """Counts earlier insertions that are taken later."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        mine = self._order[job.id]
        others = (one for one in self._jobs.values() if one.lane == job.lane)
        return min(most, sum(_due(one, until) and self._order[one.id] < mine for one in others))


class CountsTheDelayed(MemoryStore):
    """Counts jobs that no process will take for a long time."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        lane = (one for one in self._jobs.values() if one.lane == job.lane)
        later = [one for one in lane if not _due(one, until)]
        return await super().count_before(job, until=until, most=most) + len(later)


class NeverCountsTheHeld(MemoryStore):
    """Leaves out jobs that were taken and have not started."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        return await super().count_before(job, until=until + timedelta(days=1), most=most)


class CountsInOneOrder(MemoryStore):
    """Counts taken jobs as if they were taken last."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        others = (one for one in self._jobs.values() if one.lane == job.lane and _due(one, until))
        due = sorted((one.due_at or until, self._order[one.id], one.id) for one in others)
        places = [job_id for *_, job_id in due]
        return min(most, places.index(job.id)) if job.id in places else 0


class CountsWhatOnceWaited(MemoryStore):
    """Counts jobs that have started since, or were deleted."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        return min(most, self._order.get(job.id, 0)) if job.run_at < until else 0


class CountsToTheEnd(MemoryStore):
    """Counts a million jobs, beyond the requested limit."""

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        return await super().count_before(job, until=until, most=max(most, 10**9))


class DeclaresWhatItLacks(MemoryStore):
    """Declares a power without its method."""

    powers = MemoryStore.powers | {StoreClock}


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
    (FindsEveryJobItDeletes, "test_a_deleted_job_is_forgotten"),
    (DeletesInTwoSteps, "test_of_racing_deletions_one_finds_the_job"),
    (LosesErrors, "test_errors_of_attempts_come_back_as_they_were_written"),
    (WritesStatesWhole, "test_a_change_without_errors_or_result_keeps_those_that_are_stored"),
    (KeepsErrorsOfTheDead, "test_a_job_inserted_again_has_no_errors_of_its_deleted_self"),
    (DeclaresWhatItLacks, "test_the_store_has_the_methods_of_the_powers_it_declares"),
]


class LooksAtOneLane(MemoryStore):
    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        return [*await super().first_due(lanes[:1])] * len(lanes)


class TellsTheLatest(MemoryStore):
    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        due = [(job.lane, job.due_at) for job in self._jobs.values() if job.due_at]
        return [max((at for lane, at in due if lane == one), default=None) for one in lanes]


class RemembersWhatWaited(MemoryStore):
    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        return [min((job.created_at for job in self._jobs.values()), default=None) for _ in lanes]


BROKEN_AT_LISTING: list[tuple[type[MemoryStore], str]] = [
    (ListsOldestFirst, "test_a_list_shows_the_latest_first_without_payloads_and_results"),
    (ListsByDate, "test_a_list_shows_the_latest_first_without_payloads_and_results"),
    (ListsPayloads, "test_a_list_shows_the_latest_first_without_payloads_and_results"),
    (ListsJobsAsTheyWere, "test_a_list_shows_jobs_as_they_stand"),
    (TakesNoNameForAnyName, "test_a_selection_keeps_to_owner_type_and_status"),
    (IgnoresTypes, "test_a_selection_keeps_to_owner_type_and_status"),
    (IgnoresStatuses, "test_a_selection_keeps_to_owner_type_and_status"),
    (PagesByOffset, "test_pages_follow_one_another_without_gap_or_repetition"),
    (RepeatsTheLast, "test_pages_follow_one_another_without_gap_or_repetition"),
    (LeadsToAnEmptyPage, "test_a_page_that_ends_the_list_names_no_next"),
    (TakesAnyCursor, "test_what_is_no_cursor_is_refused"),
    (LetsOutWhatParsingRaises, "test_what_is_no_cursor_is_refused"),
    (ListsTheDead, "test_a_deleted_job_is_in_no_list"),
    (CountsAllLanes, "test_jobs_in_front_in_the_same_lane_are_counted"),
    (CountsTheJobItself, "test_jobs_in_front_in_the_same_lane_are_counted"),
    (CountsAsTheyCame, "test_jobs_are_counted_in_the_order_in_which_they_are_taken"),
    (CountsTheDelayed, "test_what_runs_or_is_delayed_or_deleted_does_not_wait_before"),
    (NeverCountsTheHeld, "test_jobs_that_are_held_come_before_the_rest"),
    (CountsInOneOrder, "test_jobs_that_are_held_come_before_the_rest"),
    (CountsWhatOnceWaited, "test_what_runs_or_is_delayed_or_deleted_does_not_wait_before"),
    (CountsToTheEnd, "test_counting_stops_in_time"),
    (LooksAtOneLane, "test_the_earliest_moment_of_each_lane_is_told"),
    (TellsTheLatest, "test_the_earliest_moment_of_each_lane_is_told"),
    (RemembersWhatWaited, "test_the_moment_follows_the_jobs"),
]


@pytest.mark.parametrize(("store", "rule"), BROKEN, ids=named)
def test_a_broken_store_fails_the_rule_it_breaks(store: type[MemoryStore], rule: str) -> None:
    assert not keeps(StoreRules, rule, lambda: {"store": store()})


@pytest.mark.parametrize(("store", "rule"), BROKEN_AT_LISTING, ids=named)
def test_a_store_with_broken_lists_fails_the_rule_it_breaks(
    store: type[MemoryStore], rule: str
) -> None:
    assert not keeps(ListingConformance, rule, lambda: {"store": store()})


class ManyClocks(MemoryStore):
    """Returns some times, one after the other."""

    def __init__(self, *times: datetime) -> None:
        super().__init__()
        self._times = cycle(times)

    async def now(self) -> datetime:
        return next(self._times)


@pytest.mark.parametrize(
    ("times", "rule"),
    [
        (
            [NOW.replace(tzinfo=None)],
            StoreClockConformance.test_the_store_s_time_is_aware_and_in_utc,
        ),
        ([NOW], StoreClockConformance.test_the_store_s_time_goes_on),
        ([NOW, LATER], StoreClockConformance.test_the_store_s_time_goes_on),
    ],
    ids=["naive", "standing", "jumping back"],
)
def test_a_broken_clock_fails_the_rule_it_breaks(
    times: list[datetime], rule: Callable[[StoreClockConformance, Store], Awaitable[None]]
) -> None:
    with pytest.raises(AssertionError):
        anyio.run(rule, StoreClockConformance(), ManyClocks(*times))

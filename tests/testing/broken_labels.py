"""Stores that break a rule of labels or of tallies, with the rule that each of them breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType

import anyio.lowlevel

from asyncjobs.core.job import Job, JobId
from asyncjobs.core.labels import Tally, labels_of, tallies_of
from asyncjobs.errors import UnreadableJob
from asyncjobs.protocols import Change, Page, Selection
from asyncjobs.stores.memory import MemoryStore
from tests.testing.test_store_rules import is_readable

# lists


class IgnoresTags(MemoryStore):
    """Lists jobs with any tags, as a store older than tags does."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await super().list(replace(which, tag=None), limit=limit, after=after)


class IgnoresOwnersOfTags(MemoryStore):
    """Shows the jobs with a tag to every user."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        owner = None if which.tag else which.user_id
        return await super().list(replace(which, user_id=owner), limit=limit, after=after)


class IgnoresStatusesOfTags(MemoryStore):
    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        status = None if which.tag else which.status
        return await super().list(replace(which, status=status), limit=limit, after=after)


class IgnoresBatches(MemoryStore):
    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await super().list(replace(which, batch=None), limit=limit, after=after)


class IgnoresMembers(MemoryStore):
    """Lists the members of batches, as a store older than this filter does."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await super().list(replace(which, members=True), limit=limit, after=after)


class TakesTagsForBatches(MemoryStore):
    """Looks for the text of a batch's label among all labels of a job."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(which, limit=limit, after=after)
        own = [job for job in page.jobs if "batch:" not in "".join(labels_of(job))]
        return page if which.members else replace(page, jobs=own)


class RemovesMembersFromThePage(MemoryStore):
    """Fills a page, and then takes the members of batches out of it."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(replace(which, members=True), limit=limit, after=after)
        return replace(page, jobs=[job for job in page.jobs if which.fits(job)])


class FindsNoLaterFailures(MemoryStore):
    """Labels jobs when they are inserted, and never again."""

    def _replace(self, change: Change) -> bool:
        return super()._replace(replace(change, labels=()))


class ListsFailuresAsTheyCame(MemoryStore):
    """Orders the jobs of a label by the time at which they got it."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        places = [*self._labelled.get(which.label or "", ())]
        if not places:
            return await super().list(which, limit=limit, after=after)
        page = await super().list(which, limit=10**6)
        jobs = sorted(page.jobs, key=lambda job: -places.index(job.id))
        start = int(after or 0)
        more = len(jobs) > start + limit
        return Page(jobs[start : start + limit], str(start + limit) if more else None)


class FindsTagsOfAnyCase(MemoryStore):
    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(replace(which, tag=None), limit=10**6, after=after)
        wanted = (which.tag or "").casefold()
        tagged = [job for job in page.jobs if wanted in [tag.casefold() for tag in job.tags]]
        return Page(tagged[:limit]) if which.tag else page


class JoinsOwnerAndTag(MemoryStore):
    """Finds the jobs of an owner by the owner, a colon and the tag."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        if which.tag is None or which.user_id is None:
            return await super().list(which, limit=limit, after=after)
        page = await super().list(Selection(), limit=10**6, after=after)
        wanted = f"{which.user_id}:{which.tag}"
        fitting = [
            job for job in page.jobs if wanted in [f"{job.user_id}:{tag}" for tag in job.tags]
        ]
        return Page(fitting[:limit])


class PagesTagsByOffset(MemoryStore):
    """Counts from the top of a tag's list, where new jobs arrive."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        if which.tag is None:
            return await super().list(which, limit=limit, after=after)
        start = int(after or 0)
        page = await super().list(which, limit=start + limit)
        return Page(page.jobs[start:], page.next and str(start + limit))


class _TrustsItsIndex(MemoryStore):
    """Lists the jobs of a label without looking at them again, as a database does."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        if which.label is None:
            return await super().list(which, limit=limit, after=after)
        jobs = [self._jobs[job_id] for job_id in reversed(self._labelled.get(which.label, {}))]
        return Page([job for job in jobs if which.status in (None, job.status)][:limit])


class LabelsBeforeItLooks(_TrustsItsIndex):
    """Labels the stored job as the one that it refuses."""

    def _insert(self, job: Job) -> Job:
        stored = super()._insert(job)
        self._label(stored.id, labels_of(job))
        return stored


class LabelsWhatItRefuses(_TrustsItsIndex):
    def _replace(self, change: Change) -> bool:
        self._label(change.job.id, change.labels)
        return super()._replace(change)


class KeepsLabelsOfTheDead(_TrustsItsIndex):
    """Deletes a job, and labels the next job of that id as the deleted one."""

    def _unlabel(self, job_id: JobId) -> None:
        """Do nothing."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        index = self._labelled
        self._labelled = {
            label: {one: place for one, place in ids.items() if one in self._jobs}
            for label, ids in index.items()
        }
        page = await super().list(which, limit=limit, after=after)
        self._labelled = index
        return page


class StopsAtAnUnreadableJobOfATag(MemoryStore):
    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(which, limit=limit, after=after)
        for job in page.jobs:
            if which.tag and not is_readable(job.changed(payload_json=b"1")):
                raise UnreadableJob(job.id)
        return page


class ForgetsLabelsWhenClosed(MemoryStore):
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._labelled.clear()
        self._tallies.clear()


# tallies


class CountsTags(MemoryStore):
    """Has counters for every label that it is asked for."""

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        return [tally or {"total": 0} for tally in await super().tally(labels)]


class AnswersInTheOrderOfLabels(MemoryStore):
    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        return await super().tally(sorted(labels))


class CountsInsertionsOnly(MemoryStore):
    def _replace(self, change: Change) -> bool:
        return super()._replace(replace(change, tallies=None))


class CountsBeforeItLooks(MemoryStore):
    """Counts jobs that are stored already."""

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        before = {*self._jobs}
        stored = await super().insert(jobs)
        for job, found in zip(jobs, stored, strict=True):
            if found.id in before or found.id != job.id:
                self._count(tallies_of(job))
        return stored


class CountsWhatItRefuses(MemoryStore):
    def _replace(self, change: Change) -> bool:
        done = super()._replace(change)
        if not done and change.job.id in self._jobs:
            self._count(change.tallies or {})
        return done


class CountsRacingChanges(MemoryStore):
    """Compares revisions, then counts, then writes."""

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        found = [self._jobs.get(change.job.id) for change in changes]
        for change, job in zip(changes, found, strict=True):
            if job is not None and job.revision == change.expected_revision:
                self._count(change.tallies or {})
        await anyio.lowlevel.checkpoint()
        return await super().replace([replace(change, tallies=None) for change in changes])


class CountsAJobOfACallOnce(MemoryStore):
    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        seen: set[JobId] = set()
        counted: list[Change] = []
        for change in changes:
            again = change.job.id in seen
            counted.append(replace(change, tallies=None) if again else change)
            seen.add(change.job.id)
        return await super().replace(counted)


class CountsAFewJobsOfACall(MemoryStore):
    """Counts as many jobs of a call as its statement has parameters."""

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        stored = await super().insert(jobs)
        for job in jobs[256:]:
            self._subtract(job)
        return stored

    def _subtract(self, job: Job) -> None:
        changes = {
            label: {name: -number for name, number in tally.items()}
            for label, tally in tallies_of(job).items()
        }
        self._count(changes)


class CountsTakenJobs(MemoryStore):
    """Counts a taken job as one that is processed."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken = await super().take(lanes, now=now, until=until, limit=limit)
        for job in taken:
            self._count({label: {"processing": 1} for label in tallies_of(job)})
        return taken


class SubtractsTheDeleted(CountsAFewJobsOfACall):
    """Counts the jobs that are stored."""

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        for job_id in ids:
            if (job := self._jobs.get(job_id)) is not None:
                self._subtract(job)
        return await super().delete(ids)


class KeepsCountersOfTheDead(MemoryStore):
    """Removes no counters."""

    def _unlabel(self, job_id: JobId) -> None:
        tallies = {label: Counter(tally) for label, tally in self._tallies.items()}
        super()._unlabel(job_id)
        self._tallies = tallies


class CountsWhatItCanRead(MemoryStore):
    """Reads the labels of a job from its text."""

    def _count(self, changes: Mapping[str, Tally]) -> None:
        if all(is_readable(job) for job in self._jobs.values()):
            super()._count(changes)


class CountsOnItsOwn(MemoryStore):
    """Keeps the counters of each opener."""

    def opened_again(self) -> MemoryStore:
        other = MemoryStore()
        mine = vars(self)
        vars(other).update({name: mine[name] for name in mine if name != "_tallies"})
        return other


class CountsInTwoSteps(MemoryStore):
    """Reads the counters in one step, and writes them in another."""

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        before = {label: Counter(tally) for label, tally in self._tallies.items()}
        await anyio.lowlevel.checkpoint()
        self._tallies = before
        return [self._insert(job) for job in jobs]


class LooksForOthersBeforeItDeletes(MemoryStore):
    """Decides whether a job is the last one of its label in one step, and deletes in another."""

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        last = {
            label
            for label, labelled in self._labelled.items()
            if {*labelled} <= {*ids} and label in self._tallies
        }
        await anyio.lowlevel.checkpoint()
        tallies = {label: tally for label, tally in self._tallies.items() if label not in last}
        deleted = await super().delete(ids)
        self._tallies = tallies
        return deleted


BROKEN_AT_LABELS: list[tuple[type[MemoryStore], str]] = [
    (IgnoresTags, "test_a_list_of_a_tag_shows_its_jobs_and_no_others"),
    (IgnoresOwnersOfTags, "test_a_list_of_a_tag_shows_its_jobs_and_no_others"),
    (IgnoresStatusesOfTags, "test_a_list_of_a_tag_shows_its_jobs_and_no_others"),
    (IgnoresBatches, "test_a_list_of_a_batch_shows_its_jobs_and_no_others"),
    (
        FindsNoLaterFailures,
        "test_the_failed_jobs_of_a_batch_are_listed_in_the_order_of_insertion",
    ),
    (
        ListsFailuresAsTheyCame,
        "test_the_failed_jobs_of_a_batch_are_listed_in_the_order_of_insertion",
    ),
    (IgnoresMembers, "test_a_list_without_members_leaves_out_the_jobs_of_all_batches"),
    (TakesTagsForBatches, "test_a_list_without_members_leaves_out_the_jobs_of_all_batches"),
    (RemovesMembersFromThePage, "test_pages_without_members_are_full"),
    (FindsTagsOfAnyCase, "test_tags_of_a_selection_are_compared_exactly"),
    (JoinsOwnerAndTag, "test_owner_and_tag_are_not_one_text"),
    (
        PagesTagsByOffset,
        "test_pages_of_a_tag_follow_one_another_without_gap_or_repetition",
    ),
    (LabelsBeforeItLooks, "test_a_job_that_is_not_added_gets_no_label"),
    (LabelsWhatItRefuses, "test_a_refused_change_adds_no_label"),
    (KeepsLabelsOfTheDead, "test_a_deleted_job_is_in_no_list_of_its_labels"),
    (StopsAtAnUnreadableJobOfATag, "test_an_unreadable_job_is_left_out_of_the_list_of_a_tag"),
    (ForgetsLabelsWhenClosed, "test_closing_and_opening_again_loses_no_label"),
]

BROKEN_AT_TALLIES: list[tuple[type[MemoryStore], str]] = [
    (CountsTags, "test_a_label_without_jobs_has_no_counters"),
    (AnswersInTheOrderOfLabels, "test_inserted_jobs_are_counted"),
    (CountsInsertionsOnly, "test_counters_follow_the_changes_of_jobs"),
    (CountsBeforeItLooks, "test_a_job_that_exists_already_is_counted_once"),
    (CountsWhatItRefuses, "test_a_refused_change_counts_nothing"),
    (CountsRacingChanges, "test_of_racing_changes_one_is_counted"),
    (CountsAJobOfACallOnce, "test_all_changes_of_one_call_are_counted"),
    (CountsAFewJobsOfACall, "test_a_call_counts_hundreds_of_jobs"),
    (CountsTakenJobs, "test_taking_jobs_changes_no_counter"),
    (SubtractsTheDeleted, "test_only_the_last_deletion_changes_the_counters"),
    (KeepsCountersOfTheDead, "test_only_the_last_deletion_changes_the_counters"),
    (CountsWhatItCanRead, "test_an_unreadable_job_is_counted_until_it_is_deleted"),
    (ForgetsLabelsWhenClosed, "test_closing_and_opening_again_loses_no_counter"),
    (CountsOnItsOwn, "test_two_openers_change_the_same_counters"),
    (CountsInTwoSteps, "test_racing_openers_count_every_job"),
    (
        LooksForOthersBeforeItDeletes,
        "test_racing_openers_delete_and_insert_the_last_job",
    ),
]

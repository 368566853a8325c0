"""The conformance suites of stores that find and count jobs by label."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobId, JobStatus, Progress, new_job_id
from asyncjobs.core.labels import label_of_batch, label_of_tag
from asyncjobs.protocols import Change, Selection, Store
from asyncjobs.testing.racing import Part, fail_all, insert_members, play_both
from asyncjobs.testing.samples import (
    LANE,
    LATER,
    LOOKALIKES,
    NOW,
    begun,
    change_of,
    failed,
    ids,
    sample_job,
    unreadable_job,
)
from asyncjobs.testing.sharing_conformance import TwoOpeners

#: More than any list below.
MANY = 100

#: More than the library puts into one call.
_MANY_IN_ONE_CALL = 300

_BATCH = JobId("job_0af76519-16cd43dd-8448eb211c80319c")

#: Tags that are no batches, whatever the store searches for.
_LIKE_BATCHES = (str(_BATCH), f"batch:{_BATCH}", '",["batch:', ',"batch:', "[", "failed:")

_ROUNDS = 15
_SEPARATORS = ":/|,;. \t\0\"'\\[]"


class LabelRules:
    """The rules of `Listing.list` by tag, batch and members, for stores with these filters."""

    async def test_a_list_of_a_tag_shows_its_jobs_and_no_others(self, store: Any) -> None:
        _require(store, "tag")
        jobs = [
            sample_job(user_id=owner, tags=tags, type=kind)
            for owner in (None, "", "ann")
            for tags in ((), ("a",), ("b",), ("b", "a"))
            for kind in ("export", "import")
        ]
        async with store:
            await store.insert(jobs)
            jobs[3] = begun(jobs[3])
            await store.replace([change_of(jobs[3].changed(revision=1), jobs[3])])
            for tag in ("a", "b", "c"):
                for owner in (None, "", "ann", "bob"):
                    for kind in (None, "import"):
                        for status in (None, JobStatus.PENDING, JobStatus.PROCESSING):
                            which = Selection(owner, kind, status, tag)
                            page = await store.list(which, limit=MANY)
                            expected = [job for job in reversed(jobs) if which.fits(job)]
                            assert ids(page.jobs) == ids(expected), which

    async def test_a_list_of_a_batch_shows_its_jobs_and_no_others(self, store: Any) -> None:
        _require(store, "batch")
        one, two = new_job_id(), new_job_id()
        jobs = [sample_job(batch=batch, tags=("a",)) for batch in (one, two, None, one)]
        async with store:
            await store.insert(jobs)
            for batch in (one, two, new_job_id()):
                page = await store.list(Selection(batch=batch), limit=MANY)
                assert ids(page.jobs) == [job.id for job in reversed(jobs) if job.batch == batch]

    async def test_the_failed_jobs_of_a_batch_are_listed_in_the_order_of_insertion(
        self, store: Any
    ) -> None:
        _require(store, "batch")
        batch = new_job_id()
        jobs = [sample_job(batch=batch) for _ in range(4)]
        jobs[1] = failed(jobs[1])
        elsewhere = sample_job(batch=new_job_id())
        which = Selection(status=JobStatus.FAILED, batch=batch)
        async with store:
            await store.insert([*jobs, elsewhere])
            assert ids((await store.list(which, limit=MANY)).jobs) == [jobs[1].id]
            for job in (elsewhere, jobs[3], jobs[0]):
                await store.replace([change_of(job, failed(job))])
            page = await store.list(which, limit=2)
            rest = await store.list(which, limit=2, after=page.next)
        assert ids(page.jobs) == [jobs[3].id, jobs[1].id]
        assert ids(rest.jobs) == [jobs[0].id]
        assert rest.next is None

    async def test_a_list_without_members_leaves_out_the_jobs_of_all_batches(
        self, store: Any
    ) -> None:
        _require(store, "members")
        batches = [None, new_job_id(), new_job_id()]
        jobs = [
            sample_job(user_id=owner, tags=tags, batch=batch, type=kind)
            for owner, kind in (("ann", "export"), (None, 'batch:",\t["batch:x'))
            for tags in ((), ("a",), *((tag, "a") for tag in _LIKE_BATCHES))
            for batch in batches
        ]
        jobs[1], jobs[2] = failed(jobs[1]), begun(jobs[2])
        async with store:
            await store.insert(jobs)
            for job in jobs[3:6]:
                await store.replace([change_of(job, failed(job))])
            jobs[3:6] = map(failed, jobs[3:6])
            for owner in (None, "ann", "bob"):
                for status in (None, JobStatus.PENDING, JobStatus.FAILED):
                    for tag in (None, "a") if "tag" in store.filters else (None,):
                        which = Selection(owner, None, status, tag, members=False)
                        page = await store.list(which, limit=MANY)
                        expected = [job for job in reversed(jobs) if which.fits(job)]
                        assert ids(page.jobs) == ids(expected), which

    async def test_pages_without_members_are_full(self, store: Any) -> None:
        _require(store, "members")
        jobs = [sample_job(user_id="ann") for _ in range(3)]
        async with store:
            for job in jobs:
                members = [
                    sample_job(user_id="ann", batch=_BATCH) for _ in range(_MANY_IN_ONE_CALL)
                ]
                await store.insert([job, *members])
            which = Selection("ann", members=False)
            first = await store.list(which, limit=2)
            rest = await store.list(which, limit=2, after=first.next)
        assert [ids(first.jobs), ids(rest.jobs)] == [ids([jobs[2], jobs[1]]), [jobs[0].id]]
        assert rest.next is None

    async def test_tags_of_a_selection_are_compared_exactly(self, store: Any) -> None:
        _require(store, "tag")
        jobs = [sample_job(tags=(name,), user_id="ann") for name in LOOKALIKES]
        jobs.append(sample_job(tags=("x" * 128,), user_id=LOOKALIKES[-1] * 300))
        jobs.append(sample_job(tags=("x" * 128,), user_id=LOOKALIKES[-1] * 301))
        async with store:
            await store.insert(jobs)
            for job in jobs:
                page = await store.list(Selection(job.user_id, tag=job.tags[0]), limit=MANY)
                assert ids(page.jobs) == [job.id], job.tags

    async def test_owner_and_tag_are_not_one_text(self, store: Any) -> None:
        _require(store, "tag")
        pairs = [
            pair
            for one in _SEPARATORS
            for pair in (("a", f"b{one}c"), (f"a{one}b", "c"), (f'a"{one}"b', "c"))
        ]
        jobs = [sample_job(user_id=owner, tags=(tag,)) for owner, tag in pairs]
        async with store:
            await store.insert(jobs)
            for job, (owner, tag) in zip(jobs, pairs, strict=True):
                page = await store.list(Selection(user_id=owner, tag=tag), limit=MANY)
                assert ids(page.jobs) == [job.id], (owner, tag)

    async def test_pages_of_a_tag_follow_one_another_without_gap_or_repetition(
        self, store: Any
    ) -> None:
        _require(store, "tag")
        jobs = [sample_job(tags=("a",)) for _ in range(7)]
        seen: list[JobId] = []
        after = None
        async with store:
            for job in jobs:
                await store.insert([sample_job(), job, sample_job(tags=("b",))])
            while len(seen) < len(jobs):
                page = await store.list(Selection(tag="a"), limit=3, after=after)
                seen += ids(page.jobs)
                await store.insert([sample_job(tags=("a",)) for _ in "12"])
                await store.delete([page.jobs[0].id])
                after = page.next
        assert seen == ids(jobs[::-1])
        assert after is None

    async def test_a_job_that_is_not_added_gets_no_label(self, store: Any) -> None:
        _require(store, "tag")
        plain, keyed = sample_job(tags=("a",)), sample_job(idempotency_key="k")
        twins = [
            plain.changed(tags=("b",)),
            sample_job(idempotency_key="k", tags=("b",)),
            sample_job(idempotency_key="k", batch=new_job_id()),
        ]
        async with store:
            await store.insert([plain, keyed])
            assert ids(await store.insert(twins)) == [plain.id, keyed.id, keyed.id]
            assert ids((await store.list(Selection(tag="a"), limit=MANY)).jobs) == [plain.id]
            for which in (Selection(tag="b"), Selection(batch=twins[2].batch)):
                assert list((await store.list(which, limit=MANY)).jobs) == []

    async def test_a_refused_change_adds_no_label(self, store: Any) -> None:
        _require(store, "batch")
        job = sample_job(batch=new_job_id())
        # A label that no tag of the job explains, so that only the change can have added it.
        stale = Change(failed(job), 7, labels=(label_of_tag("new"),))
        async with store:
            await store.insert([job])
            assert list(await store.replace([change_of(job, begun(job)), stale])) == [True, False]
            assert list((await store.list(Selection(tag="new"), limit=MANY)).jobs) == []

    async def test_a_deleted_job_is_in_no_list_of_its_labels(self, store: Any) -> None:
        _require(store, "tag")
        gone, kept = (sample_job(tags=("a", "b"), user_id="ann", batch=_BATCH) for _ in "12")
        async with store:
            await store.insert([gone, kept])
            await store.replace([change_of(gone, failed(gone))])
            await store.delete([gone.id])
            for which in (Selection(tag="b"), Selection("ann", tag="a"), Selection(batch=_BATCH)):
                assert ids((await store.list(which, limit=MANY)).jobs) == [kept.id]
            which = Selection(status=JobStatus.FAILED, batch=_BATCH)
            assert list((await store.list(which, limit=MANY)).jobs) == []
            # A job without labels that is stored in its place has none of the deleted ones.
            await store.insert([gone.changed(tags=(), batch=None)])
            assert ids((await store.list(Selection(tag="a"), limit=MANY)).jobs) == [kept.id]

    async def test_an_unreadable_job_is_left_out_of_the_list_of_a_tag(self, store: Any) -> None:
        _require(store, "tag")
        bad, good = unreadable_job().changed(tags=("a",)), sample_job(tags=("a",))
        async with store:
            await store.insert([good, bad])
            first = await store.list(Selection(tag="a"), limit=1)
            rest = await store.list(Selection(tag="a"), limit=1, after=first.next)
            # A store that keeps objects can read it.
            assert ids([*first.jobs, *rest.jobs]) in ([good.id], [bad.id, good.id])

    async def test_closing_and_opening_again_loses_no_label(self, store: Any) -> None:
        _require(store, "tag")
        job = sample_job(tags=("a",))
        async with store:
            await store.insert([job])
        async with store:
            assert ids((await store.list(Selection(tag="a"), limit=MANY)).jobs) == [job.id]


@pytest.mark.anyio
class TalliesConformance(TwoOpeners):
    """The contract of `asyncjobs.protocols.Tallies`.

    Override the fixture `store`, and `opener` if several processes may open the data, as for
    `SharingConformance`.
    """

    async def test_a_label_without_jobs_has_no_counters(self, store: Any) -> None:
        async with store:
            await store.insert([sample_job(tags=("a",)), sample_job()])
            assert list(await store.tally(["batch:none", "batch:nothing"])) == [{}, {}]
            assert list(await store.tally([])) == []

    async def test_inserted_jobs_are_counted(self, store: Any) -> None:
        one, two = new_job_id(), new_job_id()
        new = [sample_job(batch=batch) for batch in (one, two, one, None)]
        new += [begun(sample_job(batch=two)), failed(sample_job(batch=two))]
        async with store:
            await store.insert(new[:2])
            await store.insert(new[2:])
            of_two = {"total": 3, "pending": 1, "processing": 1, "failed": 1, "progress": 100}
            assert await counters(store, two, new_job_id(), one) == [of_two, {}, _pending(2)]
            assert await counters(store, one, two, one) == [_pending(2), of_two, _pending(2)]

    async def test_counters_follow_the_changes_of_jobs(self, store: Any) -> None:
        job, other = sample_job(batch=_BATCH), sample_job(batch=_BATCH)
        started = begun(job)
        reported = lifecycle.report(started, Progress(percent=40), token="t")
        done = lifecycle.complete(reported, NOW, token="t", result=b"1")
        async with store:
            await store.insert([job, other])
            for before, after, expected in (
                (job, started, {"pending": 1, "processing": 1}),
                (started, reported, {"pending": 1, "processing": 1, "progress": 40}),
                (reported, done, {"pending": 1, "completed": 1, "progress": 100}),
                (other, failed(other), {"completed": 1, "failed": 1, "progress": 200}),
            ):
                assert list(await store.replace([change_of(before, after)])) == [True]
                assert await counters(store, _BATCH) == [{"total": 2, **expected}]

    async def test_a_job_that_exists_already_is_counted_once(self, store: Any) -> None:
        plain = sample_job(batch=_BATCH)
        keyed, twin = (sample_job(batch=_BATCH, idempotency_key="k") for _ in "12")
        elsewhere = sample_job(batch=(another := new_job_id()), idempotency_key="k")
        async with store:
            await store.insert([plain, keyed, twin])
            await store.insert([plain, twin, elsewhere])
            assert await counters(store, _BATCH, another) == [_pending(2), {}]

    async def test_a_refused_change_counts_nothing(self, store: Any) -> None:
        stale, good = sample_job(batch=_BATCH), sample_job(batch=_BATCH)
        changes = [
            change_of(stale.changed(revision=7), failed(stale)),
            change_of(good, begun(good)),
            change_of(unknown := sample_job(batch=_BATCH), begun(unknown)),
        ]
        async with store:
            await store.insert([stale, good])
            assert list(await store.replace(changes)) == [False, True, False]
            assert await counters(store, _BATCH) == [{"total": 2, "pending": 1, "processing": 1}]

    async def test_of_racing_changes_one_is_counted(self, store: Any) -> None:
        jobs = [sample_job(batch=_BATCH) for _ in range(5)]

        async def start(number: int) -> None:
            await store.replace([change_of(job, begun(job, f"t{number}")) for job in jobs])

        async with store:
            await store.insert(jobs)
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(start, number)
            assert await counters(store, _BATCH) == [{"total": 5, "processing": 5}]

    async def test_all_changes_of_one_call_are_counted(self, store: Any) -> None:
        jobs = [sample_job(batch=_BATCH) for _ in range(3)]
        starts = [change_of(job, begun(job)) for job in jobs]
        done = lifecycle.complete(begun(jobs[1]), NOW, token="t", result=b"1")
        async with store:
            await store.insert(jobs)
            changes = [*starts, change_of(begun(jobs[1]), done), starts[1]]
            assert list(await store.replace(changes)) == [True] * 4 + [False]
            expected = {"total": 3, "processing": 2, "completed": 1, "progress": 100}
            assert await counters(store, _BATCH) == [expected]

    async def test_a_call_counts_hundreds_of_jobs(self, store: Any) -> None:
        jobs = [sample_job(batch=_BATCH) for _ in range(_MANY_IN_ONE_CALL)]
        async with store:
            await store.insert(jobs)
            assert await counters(store, _BATCH) == [_pending(len(jobs))]
            await store.replace([change_of(job, begun(job)) for job in jobs])
            assert await counters(store, _BATCH) == [{"total": len(jobs), "processing": len(jobs)}]
            await store.delete(ids(jobs))
            assert await counters(store, _BATCH) == [{}]

    async def test_taking_jobs_changes_no_counter(self, store: Any) -> None:
        async with store:
            await store.insert([sample_job(batch=_BATCH)])
            await store.take([LANE], now=NOW, until=LATER, limit=1)
            assert await counters(store, _BATCH) == [_pending(1)]

    async def test_only_the_last_deletion_changes_the_counters(self, store: Any) -> None:
        jobs = [sample_job(batch=_BATCH, tags=("a",)) for _ in range(3)]
        async with store:
            await store.insert(jobs)
            assert list(await store.delete([jobs[0].id, jobs[2].id])) == [True, True]
            assert await counters(store, _BATCH) == [_pending(3)]
            await store.delete([jobs[1].id])
            assert await counters(store, _BATCH) == [{}]
            await store.insert(jobs[:1])
            assert await counters(store, _BATCH) == [_pending(1)]

    async def test_an_unreadable_job_is_counted_until_it_is_deleted(self, store: Any) -> None:
        bad = unreadable_job().changed(batch=_BATCH)
        async with store:
            await store.insert([bad])
            assert await counters(store, _BATCH) == [_pending(1)]
            assert list(await store.delete([bad.id])) == [True]
            assert await counters(store, _BATCH) == [{}]

    async def test_closing_and_opening_again_loses_no_counter(self, store: Any) -> None:
        job = sample_job(batch=_BATCH)
        async with store:
            await store.insert([job])
        async with store:
            assert await counters(store, _BATCH) == [_pending(1)]
            await store.delete([job.id])
            assert await counters(store, _BATCH) == [{}]

    async def test_two_openers_change_the_same_counters(self, store: Any, other: Store) -> None:
        job = sample_job(batch=_BATCH)
        async with store, other:
            await store.insert([job])
            assert await counters(other, _BATCH) == [_pending(1)]
            await other.replace([change_of(job, begun(job))])
            assert await counters(store, _BATCH) == [{"total": 1, "processing": 1}]

    async def test_racing_openers_count_every_job(self, store: Any, other: Store) -> None:
        batches = [new_job_id(), new_job_id()]
        mine = partial(insert_members, batches=batches, rounds=_ROUNDS)
        theirs = partial(insert_members, batches=batches[::-1], rounds=_ROUNDS)
        async with store, other:
            mine_jobs, their_jobs = await play_both(mine, store, theirs, other)
            assert await counters(store, *batches) == [_pending(2 * _ROUNDS)] * 2
            # The same in changes: each opener ends what the other one has inserted.
            end = [partial(fail_all, jobs=jobs) for jobs in (their_jobs, mine_jobs)]
            await play_both(end[0], store, end[1], other)
            number = 2 * _ROUNDS
            expected = {"total": number, "failed": number, "progress": 100 * number}
            assert await counters(store, *batches) == [expected] * 2

    async def test_racing_openers_delete_and_insert_the_last_job(
        self, store: Any, other: Store
    ) -> None:
        async with store, other:
            for _ in range(_ROUNDS):
                jobs = [sample_job(batch=_BATCH) for _ in "123"]
                await store.insert(jobs[:2])
                # Each deletes one of the last two jobs.
                await play_both(_deleting(jobs[0]), store, _deleting(jobs[1]), other)
                assert await counters(store, _BATCH) == [{}]
                # One deletes the last job, while the other inserts a new one.
                await store.insert(jobs[:1])
                await play_both(_deleting(jobs[0]), store, _inserting(jobs[2]), other)
                [left] = await counters(other, _BATCH)
                assert left in (_pending(1), _pending(2))
                await store.delete([jobs[2].id])
                assert await counters(other, _BATCH) == [{}]


async def counters(store: Any, *batches: JobId) -> Sequence[dict[str, int]]:
    """Read the counters of batches that are not 0."""
    tallies = await store.tally([label_of_batch(batch) for batch in batches])
    return [{name: number for name, number in one.items() if number} for one in tallies]


def _deleting(job: Job) -> Part[object]:
    return lambda store: store.delete([job.id])


def _inserting(job: Job) -> Part[object]:
    return lambda store: store.insert([job])


def _pending(number: int) -> dict[str, int]:
    return {"total": number, "pending": number}


def _require(store: Any, filter_: str) -> None:
    if filter_ not in store.filters:
        pytest.skip(f"The store does not list by {filter_}.")

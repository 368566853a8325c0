"""The conformance suites of stores with optional powers, one for each power."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import fields
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import ConfigurationError, InvalidQuery, UnusableConnection
from asyncjobs.protocols import (
    HOLD,
    Change,
    ChangeNotices,
    InlineReads,
    Inspection,
    Listing,
    MigrationScript,
    OutputStreams,
    Selection,
    Store,
    StoreClock,
    Tallies,
    Transactions,
)
from asyncjobs.testing.label_conformance import LabelRules, TalliesConformance
from asyncjobs.testing.output_conformance import OutputStreamsConformance
from asyncjobs.testing.samples import (
    LANE,
    LATER,
    LOOKALIKES,
    NOW,
    begun,
    ended,
    full_job,
    ids,
    sample_job,
    sample_submission,
    unreadable_job,
)
from asyncjobs.testing.sharing_conformance import TwoOpeners

MANY = 100

_MANY_IN_ONE_CALL = 600

# How many turns of the event loop a read that never waits may take.
_TURNS = 20


@pytest.mark.anyio
class ListingConformance(LabelRules):
    """The contract of `asyncjobs.protocols.Listing`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_a_list_shows_the_latest_first_without_payloads_and_results(
        self, store: Any
    ) -> None:
        jobs = [sample_job(), full_job(), sample_job(created_at=NOW - timedelta(days=1))]
        async with store:
            await store.insert(jobs)
            page = await store.list(Selection(), limit=MANY)
        assert list(page.jobs) == [narrow(job) for job in reversed(jobs)]
        assert page.next is None

    async def test_a_list_shows_jobs_as_they_stand(self, store: Any) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            done = await ended(store, job, b"1")
            page = await store.list(Selection(status=JobStatus.COMPLETED), limit=MANY)
            none = await store.list(Selection(status=JobStatus.PENDING), limit=MANY)
        assert list(page.jobs) == [narrow(done)]
        assert list(none.jobs) == []

    async def test_a_selection_keeps_to_owner_type_and_status(self, store: Any) -> None:
        owners, types = [None, "", "ann", "bob"], ["export", "import"]
        jobs = [
            sample_job(user_id=owner, type=kind) for owner in owners for kind in types for _ in "12"
        ]
        async with store:
            await store.insert(jobs)
            jobs[5] = begun(jobs[5])
            await store.replace([Change(jobs[5], 1)])
            for owner in owners:
                for kind in (None, *types):
                    for status in (None, JobStatus.PENDING, JobStatus.PROCESSING):
                        which = Selection(owner, kind, status)
                        page = await store.list(which, limit=MANY)
                        expected = [job for job in reversed(jobs) if which.fits(job)]
                        assert ids(page.jobs) == ids(expected), which

    async def test_owners_and_types_of_a_selection_are_compared_exactly(self, store: Any) -> None:
        owned = [sample_job(user_id=name) for name in LOOKALIKES]
        typed = [sample_job(type=name) for name in LOOKALIKES]
        async with store:
            await store.insert([*owned, *typed])
            for name, of_owner, of_type in zip(LOOKALIKES, owned, typed, strict=True):
                page = await store.list(Selection(user_id=name), limit=MANY)
                assert ids(page.jobs) == [of_owner.id], name
                page = await store.list(Selection(type=name), limit=MANY)
                assert ids(page.jobs) == [of_type.id], name

    async def test_the_declared_filters_are_fields_of_a_selection(self, store: Any) -> None:
        assert {"user_id", "type", "status"} <= {*store.filters}
        assert {*store.filters} <= {field.name for field in fields(Selection)}

    async def test_a_list_leaves_out_what_cannot_be_read(self, store: Any) -> None:
        bad, good = unreadable_job(), sample_job()
        async with store:
            await store.insert([good, bad])
            first = await store.list(Selection(), limit=1)
            rest = await store.list(Selection(), limit=1, after=first.next)
            # A store that keeps objects can read it.
            assert ids([*first.jobs, *rest.jobs]) in ([good.id], [bad.id, good.id])

    async def test_pages_follow_one_another_without_gap_or_repetition(self, store: Any) -> None:
        jobs = [sample_job(user_id="ann") for _ in range(7)]
        which = Selection(user_id="ann")
        async with store:
            await store.insert(jobs)
            seen: list[str] = []
            sizes: list[int] = []
            after = None
            while True:
                page = await store.list(which, limit=3, after=after)
                seen += ids(page.jobs)
                sizes.append(len(page.jobs))
                # Neither may shift the following pages; one of each would hide an error.
                await store.insert([sample_job(user_id="ann") for _ in "12"])
                await store.delete([page.jobs[0].id])
                if page.next is None:
                    break
                after = page.next
        assert seen == ids(list(reversed(jobs)))
        assert sizes == [3, 3, 1]

    async def test_a_new_job_never_gets_the_place_of_a_deleted_one(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(4)]
        async with store:
            await store.insert(jobs)
            page = await store.list(Selection(), limit=2)
            await store.delete(ids(jobs[1:]))
            await store.insert([sample_job() for _ in range(4)])
            rest = await store.list(Selection(), limit=MANY, after=page.next)
        assert ids(rest.jobs) == ids(jobs[:1])

    async def test_a_page_that_ends_the_list_names_no_next(self, store: Any) -> None:
        async with store:
            await store.insert([sample_job(), sample_job()])
            assert (await store.list(Selection(), limit=2)).next is None
            assert (await store.list(Selection(), limit=1)).next is not None

    @pytest.mark.parametrize("cursor", ["", "x", "-1", "1 OR 1", "é", "9" * 400, "\x00"])
    async def test_what_is_no_cursor_is_refused(self, store: Any, cursor: str) -> None:
        async with store:
            with pytest.raises(InvalidQuery):
                await store.list(Selection(), limit=1, after=cursor)

    async def test_a_deleted_job_is_in_no_list(self, store: Any) -> None:
        job = sample_job(user_id="ann")
        async with store:
            await store.insert([job])
            await store.delete([job.id])
            assert list((await store.list(Selection(user_id="ann"), limit=1)).jobs) == []

    async def test_jobs_in_front_in_the_same_lane_are_counted(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(3)]
        other = sample_job(queue="other")
        async with store:
            await store.insert([jobs[0], other, *jobs[1:]])
            counts = [await before(store, job) for job in jobs]
            alone = await before(store, other)
        assert counts == [0, 1, 2]
        assert alone == 0

    async def test_jobs_are_counted_in_the_order_in_which_they_are_taken(self, store: Any) -> None:
        ages = [0, 2, 1, 2, 0]
        jobs = [sample_job(created_at=NOW - timedelta(hours=hours)) for hours in ages]
        async with store:
            await store.insert(jobs)
            assert [await before(store, job) for job in jobs] == [3, 0, 2, 1, 4]

    async def test_what_runs_or_is_delayed_or_deleted_does_not_wait_before(
        self, store: Any
    ) -> None:
        running, gone, last = (sample_job() for _ in range(3))
        delayed = lifecycle.submit(sample_submission(), run_at=NOW + HOLD + timedelta(seconds=1))
        async with store:
            await store.insert([running, delayed, gone, last])
            await store.replace([Change(begun(running), running.revision)])
            await store.delete([gone.id])
            assert await before(store, last) == 0
            assert [await before(store, job) for job in (running, gone)] == [0, 0]

    async def test_jobs_that_are_held_come_before_the_rest(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(5)]
        async with store:
            await store.insert(jobs)
            await store.take([LANE], now=NOW, until=NOW + HOLD, limit=1)
            await store.take([LANE], now=NOW, until=NOW + HOLD / 2, limit=2)
            assert [await before(store, job) for job in jobs] == [2, 0, 1, 3, 4]

    async def test_counting_stops_in_time(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(9)]
        async with store:
            await store.insert(jobs)
            await store.take([LANE], now=NOW, until=LATER, limit=4)
            for job in (jobs[3], jobs[8]):
                assert await before(store, job, most=3) == 3

    async def test_the_earliest_moment_of_each_lane_is_told(self, store: Any) -> None:
        first, second = (sample_job(created_at=NOW - timedelta(hours=hours)) for hours in (2, 1))
        other = sample_job(queue="other")
        lanes = ["other", "empty", "default"]
        async with store:
            await store.insert([second, first, other])
            assert list(await store.first_due(lanes)) == [other.due_at, None, first.due_at]
            assert list(await store.first_due([])) == []

    async def test_the_moment_follows_the_jobs(self, store: Any) -> None:
        first, second = (sample_job(created_at=NOW - timedelta(hours=hours)) for hours in (2, 1))
        lanes = [first.lane]
        async with store:
            await store.insert([first, second])
            await store.take(lanes, now=NOW, until=LATER, limit=1)
            assert list(await store.first_due(lanes)) == [second.due_at]
            await store.replace([Change(begun(second), second.revision)])
            assert list(await store.first_due(lanes)) == [LATER]
            await store.delete([first.id])
            assert list(await store.first_due(lanes)) == [None]


async def before(store: Any, job: Job, most: int = MANY) -> int:
    """Count the jobs that begin before a job, as of `NOW`."""
    count: int = await store.count_before(job, until=NOW + HOLD, most=most)
    return count


def narrow(job: Job) -> Job:
    """Remove the data that a list does not return."""
    return job.changed(payload_json=b"", result_json=None, errors_json=None)


@pytest.mark.anyio
class StoreClockConformance:
    """The contract of `asyncjobs.protocols.StoreClock`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_the_store_s_time_is_aware_and_in_utc(self, store: Any) -> None:
        async with store:
            assert (await store.now()).utcoffset() == timedelta(0)

    async def test_the_store_s_time_goes_on(self, store: Any) -> None:
        async with store:
            times = [await store.now() for _ in range(50)]
        assert times == sorted(times)
        assert times[0] < times[-1]


@pytest.mark.anyio
class InlineReadsConformance:
    """The contract of `asyncjobs.protocols.InlineReads`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_a_read_waits_for_nothing(self, store: Any) -> None:
        job, found = sample_job(), list[Job | None]()

        async def read() -> None:
            found.extend(await store.get([job.id]))

        async with store:
            await store.insert([job])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                for _ in range(_TURNS):
                    await anyio.lowlevel.checkpoint()
                assert found == [job]


@pytest.mark.anyio
class InspectionConformance:
    """The contract of `asyncjobs.protocols.Inspection`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_each_finding_names_a_subject_of_its_own(self, store: Any) -> None:
        async with store:
            found = await store.inspect()
        subjects = [finding.subject for finding in found]
        assert subjects
        assert all(subjects)
        assert len({*subjects}) == len(subjects)

    async def test_an_inspection_changes_nothing(self, store: Any) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            found = list(await store.inspect())
            assert list(await store.inspect()) == found
            assert list(await store.get([job.id])) == [job]
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == [job.id]


@pytest.mark.anyio
class MigrationScriptConformance:
    """The contract of `asyncjobs.protocols.MigrationScript`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_the_script_needs_no_open_store(self, store: Any) -> None:
        script = store.migration_sql()
        assert script.strip()
        async with store:
            assert store.migration_sql() == script

    async def test_an_unknown_version_is_refused(self, store: Any) -> None:
        with pytest.raises(ConfigurationError):
            store.migration_sql(since=10**6)


@pytest.mark.anyio
class ChangeNoticesConformance(TwoOpeners):
    """The contract of `asyncjobs.protocols.ChangeNotices`.

    Override the fixtures `store` and `opener`, as for `SharingConformance`. `patience` is how many
    seconds a rule waits for a notice.
    """

    patience = 60.0

    async def test_what_another_opener_writes_is_noticed(self, store: Any, other: Store) -> None:
        job = sample_job()
        writes: list[Callable[[], Awaitable[object]]] = [
            lambda: other.insert([job]),
            lambda: other.replace([Change(begun(job), job.revision)]),
            lambda: other.delete([job.id]),
        ]
        async with store, other:
            changes = store.changes()
            with anyio.fail_after(self.patience):
                await anext(changes)
                for write in writes:
                    await write()
                    await noticed(changes, [job])
            await changes.aclose()

    async def test_the_first_batch_comes_at_once_and_means_any_job(self, store: Any) -> None:
        async with store:
            changes = store.changes()
            with anyio.fail_after(self.patience):
                assert list(await anext(changes)) == []
            await changes.aclose()

    async def test_every_job_of_a_large_call_is_noticed(self, store: Any, other: Store) -> None:
        jobs = [sample_job() for _ in range(_MANY_IN_ONE_CALL)]
        async with store, other:
            changes = store.changes()
            with anyio.fail_after(self.patience):
                await anext(changes)
                await other.insert(jobs)
                await noticed(changes, jobs)
            await changes.aclose()

    async def test_changes_can_be_followed_again(self, store: Any, other: Store) -> None:
        job = sample_job()
        async with store, other:
            first = store.changes()
            with anyio.fail_after(self.patience):
                await anext(first)
                await first.aclose()
                again = store.changes()
                await anext(again)
                await other.insert([job])
                await noticed(again, [job])
            await again.aclose()


async def noticed(changes: AsyncIterator[Any], jobs: list[Job]) -> None:
    """Wait until all of these jobs, or any job, may have changed."""
    missing = {*ids(jobs)}
    while missing:
        batch = await anext(changes)
        missing -= {*batch} if batch else missing


class ApplicationTransaction(Protocol):
    """A transaction that an application has begun on its `connection`."""

    @property
    def connection(self) -> object:
        """The connection that the application passes to `enqueue`."""
        ...

    async def commit(self) -> None:
        """Commit the transaction."""
        ...

    async def rollback(self) -> None:
        """Roll the transaction back."""
        ...


Begin = Callable[[], AbstractAsyncContextManager[ApplicationTransaction]]


@pytest.mark.anyio
class TransactionsConformance:
    """The contract of `asyncjobs.protocols.Transactions`.

    Override the fixtures `store` and `begin`: a function that returns an async context manager, in
    which a new transaction is in progress on a connection of the application.
    """

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    @pytest.fixture
    def begin(self) -> Begin:
        raise NotImplementedError("Override the fixture `begin`.")

    async def test_jobs_exist_when_the_transaction_commits(self, store: Any, begin: Begin) -> None:
        jobs = [sample_job(idempotency_key="k"), sample_job()]
        async with store, begin() as transaction:
            assert list(await store.insert_within(transaction.connection, jobs)) == jobs
            assert list(await store.get(ids(jobs))) == [None, None]
            assert list(await store.take([LANE], now=NOW, until=LATER, limit=9)) == []
            await transaction.commit()
            assert list(await store.get(ids(jobs))) == jobs
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == ids(jobs)

    async def test_jobs_never_existed_if_the_transaction_is_rolled_back(
        self, store: Any, begin: Begin
    ) -> None:
        job, next_job = sample_job(idempotency_key="k"), sample_job(idempotency_key="k")
        async with store:
            async with begin() as transaction:
                await store.insert_within(transaction.connection, [job])
                await transaction.rollback()
            assert list(await store.get([job.id])) == [None]
            assert list(await store.insert([next_job])) == [next_job]

    async def test_a_stored_job_of_the_same_id_or_key_is_returned(
        self, store: Any, begin: Begin
    ) -> None:
        plain, keyed = sample_job(), sample_job(idempotency_key="k")
        twins = [plain.changed(payload_json=b"1"), sample_job(idempotency_key="k")]
        async with store:
            await store.insert([plain, keyed])
            async with begin() as transaction:
                stored = await store.insert_within(transaction.connection, twins)
                await transaction.commit()
            assert list(stored) == [plain, keyed]
            assert list(await store.get(ids(twins))) == [plain, None]

    async def test_a_transaction_finds_what_it_has_inserted(self, store: Any, begin: Begin) -> None:
        first, second = sample_job(idempotency_key="k"), sample_job(idempotency_key="k")
        async with store, begin() as transaction:
            await store.insert_within(transaction.connection, [first])
            assert list(await store.insert_within(transaction.connection, [second])) == [first]
            await transaction.commit()
            assert list(await store.get([first.id, second.id])) == [first, None]

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    async def test_the_end_of_a_transaction_with_the_same_key_is_awaited(
        self, store: Any, begin: Begin, end: str
    ) -> None:
        first, second = sample_job(idempotency_key="k"), sample_job(idempotency_key="k")
        stored: list[Job] = []

        async def insert(transaction: ApplicationTransaction) -> None:
            stored.extend(await store.insert_within(transaction.connection, [second]))
            await transaction.commit()

        async with store, begin() as one, begin() as two:
            await store.insert_within(one.connection, [first])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(insert, two)
                for _ in range(_TURNS):
                    await anyio.lowlevel.checkpoint()
                assert stored == []
                await getattr(one, end)()
            winner, loser = (first, second) if end == "commit" else (second, first)
            assert stored == [winner]
            assert list(await store.get([winner.id, loser.id])) == [winner, None]

    async def test_what_is_no_connection_is_refused(self, store: Any) -> None:
        job = sample_job()
        async with store:
            with pytest.raises(UnusableConnection):
                await store.insert_within(object(), [job])
            assert list(await store.get([job.id])) == [None]


#: The suite of each power.
SUITES: Mapping[type, type] = MappingProxyType(
    {
        ChangeNotices: ChangeNoticesConformance,
        InlineReads: InlineReadsConformance,
        Inspection: InspectionConformance,
        Listing: ListingConformance,
        MigrationScript: MigrationScriptConformance,
        OutputStreams: OutputStreamsConformance,
        StoreClock: StoreClockConformance,
        Tallies: TalliesConformance,
        Transactions: TransactionsConformance,
    }
)

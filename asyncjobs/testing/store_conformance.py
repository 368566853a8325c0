"""The conformance suite of stores: inherit a class, override its fixture, run pytest."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import MAINTENANCE_LANE, Job, JobStatus, Retry, new_job_id
from asyncjobs.errors import UnreadableJob
from asyncjobs.protocols import Change, Store, check_powers
from asyncjobs.testing.power_conformance import SUITES
from asyncjobs.testing.samples import (
    LANE,
    LATER,
    LOOKALIKES,
    NOW,
    begun,
    ended,
    full_job,
    ids,
    sample_error,
    sample_job,
    unreadable_job,
)
from asyncjobs.testing.sharing_conformance import SharingConformance

#: More than the library puts into one call, and more than many limits on parameters.
MANY = 600

SEPARATORS = ":/|,;.-_=#@&+~ \t\n\0\x1f\"'\\"


def failed_attempts(job: Job) -> tuple[Job, Job]:
    """Return a job after its first attempt has failed, and after its second has."""
    after: list[Job] = []
    for number, token in enumerate("tu", 1):
        noted = lifecycle.note_error(begun(job, token), sample_error(number))
        job = lifecycle.retry(noted, NOW, token=token, jitter=0)
        after.append(job)
    return after[0], after[1]


class StoringRules:
    """The rules of insert, get, replace and delete, of powers, and of opening again."""

    async def test_the_store_has_the_methods_of_the_powers_it_declares(self, store: Store) -> None:
        check_powers(store)

    # insert

    async def test_a_job_comes_back_as_it_went_in(self, store: Store) -> None:
        job = full_job()
        async with store:
            assert await store.insert([job]) == [job]
            assert await store.get([job.id]) == [job]

    async def test_insert_keeps_the_stored_job_of_the_same_id(self, store: Store) -> None:
        job = sample_job()
        twin = job.changed(payload_json=b'"other"')
        async with store:
            await store.insert([job])
            assert await store.insert([twin]) == [job]
            assert await store.get([job.id]) == [job]

    async def test_an_idempotency_key_is_good_for_one_job(self, store: Store) -> None:
        first = sample_job(user_id="ann", idempotency_key="k")
        second = sample_job(user_id="ann", idempotency_key="k")
        async with store:
            await store.insert([first])
            assert await store.insert([second]) == [first]
            assert await store.get([second.id]) == [None]

    async def test_of_two_jobs_with_one_key_in_one_call_the_first_wins(self, store: Store) -> None:
        first, second = sample_job(idempotency_key="k"), sample_job(idempotency_key="k")
        async with store:
            assert await store.insert([first, second]) == [first, first]

    async def test_keys_are_apart_by_owner_and_type(self, store: Store) -> None:
        jobs = [
            sample_job(idempotency_key="k"),
            sample_job(idempotency_key="k", user_id=""),
            sample_job(idempotency_key="k", user_id="ann"),
            sample_job(idempotency_key="k", user_id="ann", type="import"),
            sample_job(idempotency_key="k2", user_id="ann"),
            sample_job(user_id="ann"),
            sample_job(user_id="ann"),
        ]
        async with store:
            assert await store.insert(jobs) == jobs

    async def test_owners_types_and_keys_are_compared_exactly(self, store: Store) -> None:
        jobs = [
            job
            for name in LOOKALIKES
            for job in (
                sample_job(idempotency_key="k", user_id=name),
                sample_job(idempotency_key="k", type=name),
                sample_job(idempotency_key=name),
            )
        ]
        async with store:
            assert list(await store.insert(jobs)) == jobs
            again = [job.changed(id=new_job_id()) for job in jobs]
            assert list(await store.insert(again)) == jobs

    async def test_owner_type_and_key_are_not_one_text(self, store: Store) -> None:
        jobs = [
            sample_job(user_id=owner, type=kind, idempotency_key=key)
            for separator in (*SEPARATORS, "::", "--", "__")
            for owner, kind, key in (
                ("a", f"b{separator}c", "d"),
                (f"a{separator}b", "c", "d"),
                ("a", "b", f"c{separator}d"),
            )
        ]
        async with store:
            assert list(await store.insert(jobs)) == jobs

    async def test_a_key_names_the_job_as_it_stands(self, store: Store) -> None:
        first = sample_job(idempotency_key="k")
        started = begun(first)
        async with store:
            await store.insert([first])
            await store.replace([Change(started, first.revision)])
            assert await store.insert([sample_job(idempotency_key="k")]) == [started]

    async def test_of_concurrent_submissions_with_one_key_one_is_stored(self, store: Store) -> None:
        jobs = [sample_job(idempotency_key="k") for _ in range(20)]
        stored: list[Job] = []

        async def submit(job: Job) -> None:
            stored.extend(await store.insert([job]))

        async with store:
            async with anyio.create_task_group() as tasks:
                for job in jobs:
                    tasks.start_soon(submit, job)
            found = await store.get([job.id for job in jobs])
        assert len({job.id for job in stored}) == 1
        assert [job for job in found if job is not None] == stored[:1]

    # get

    async def test_get_answers_in_the_order_of_the_question(self, store: Store) -> None:
        one, two = sample_job(), sample_job()
        unknown = new_job_id()
        async with store:
            await store.insert([one, two])
            asked = [two.id, unknown, one.id, two.id]
            assert list(await store.get(asked)) == [two, None, one, two]

    async def test_nothing_asked_is_nothing_answered(self, store: Store) -> None:
        async with store:
            assert list(await store.insert([])) == []
            assert list(await store.get([])) == []
            assert list(await store.replace([])) == []
            assert list(await store.take([], now=LATER, until=LATER, limit=5)) == []
            await store.delete([])

    async def test_large_payloads_and_results_come_back_whole(self, store: Store) -> None:
        job = sample_job(payload_json=b'"' + b"p" * 1024 * 1024 + b'"')
        result = b'"' + b"r" * 8 * 1024 * 1024 + b'"'
        async with store:
            await store.insert([job])
            done = await ended(store, job, result)
            assert await store.get([job.id]) == [done]

    async def test_errors_of_attempts_come_back_as_they_were_written(self, store: Store) -> None:
        job = sample_job(retry=Retry(max_attempts=3))
        first, second = failed_attempts(job)
        async with store:
            await store.insert([job])
            for before, failed in ((job, first), (first, second)):
                assert list(await store.replace([Change(failed, before.revision)])) == [True]
                assert list(await store.get([job.id])) == [failed]
            assert [error.attempt for error in second.attempt_errors] == [1, 2]
            [taken] = await store.take([LANE], now=LATER, until=LATER, limit=1)
            assert taken.errors_json == second.errors_json

    async def test_what_was_handed_out_does_not_change(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            [seen] = await store.get([job.id])
            await store.replace([Change(begun(job), job.revision)])
            await store.take([MAINTENANCE_LANE], now=LATER, until=LATER, limit=1)
        assert seen == job
        assert job.status is JobStatus.PENDING

    # replace

    async def test_replace_writes_where_the_revision_is_the_expected_one(
        self, store: Store
    ) -> None:
        job = sample_job()
        started = begun(job)
        async with store:
            await store.insert([job])
            assert list(await store.replace([Change(started, job.revision)])) == [True]
            assert await store.get([job.id]) == [started]

    async def test_a_change_writes_the_state_and_leaves_what_was_submitted(
        self, store: Store
    ) -> None:
        job = sample_job()
        started = begun(job)
        narrow = started.changed(payload_json=b"", type="other")
        async with store:
            await store.insert([job])
            assert list(await store.replace([Change(narrow, job.revision)])) == [True]
            assert list(await store.get([job.id])) == [started]

    async def test_a_change_without_errors_or_result_keeps_those_that_are_stored(
        self, store: Store
    ) -> None:
        job = sample_job(retry=Retry(max_attempts=3))
        failed, _ = failed_attempts(job)
        started = begun(failed, token="u")
        done = lifecycle.complete(started, LATER, token="u", result=b"7")
        called = done.changed(revision=done.revision + 1)
        async with store:
            await store.insert([job])
            for before, after, keeps in (
                (job, failed, ()),
                (failed, started, ("errors_json",)),
                (started, done, ("errors_json",)),
                (done, called, ("errors_json", "result_json")),
            ):
                unsaid = after.changed(**dict.fromkeys(keeps))
                assert list(await store.replace([Change(unsaid, before.revision)])) == [True]
                assert list(await store.get([job.id])) == [after]

    async def test_a_stale_change_is_refused_and_changes_nothing(self, store: Store) -> None:
        job = sample_job()
        started = begun(job)
        async with store:
            await store.insert([job])
            await store.replace([Change(started, job.revision)])
            cancelled = lifecycle.cancel(job, LATER)
            assert list(await store.replace([Change(cancelled, job.revision)])) == [False]
            assert await store.get([job.id]) == [started]

    async def test_an_unknown_job_cannot_be_replaced(self, store: Store) -> None:
        job = sample_job()
        async with store:
            assert list(await store.replace([Change(begun(job), job.revision)])) == [False]
            assert await store.get([job.id]) == [None]

    async def test_a_refused_change_does_not_touch_the_others(self, store: Store) -> None:
        stale, good = sample_job(), sample_job()
        async with store:
            await store.insert([stale, good])
            changes = [Change(begun(stale), 7), Change(begun(good), good.revision)]
            assert list(await store.replace(changes)) == [False, True]
            assert await store.get([stale.id, good.id]) == [stale, begun(good)]

    async def test_changes_of_one_call_to_one_job_apply_in_order(self, store: Store) -> None:
        job = sample_job()
        started = begun(job)
        done = lifecycle.complete(started, LATER, token="t", result=b"1")
        async with store:
            await store.insert([job])
            changes = [Change(started, job.revision), Change(done, started.revision)]
            assert list(await store.replace([*changes, changes[1]])) == [True, True, False]
            assert await store.get([job.id]) == [done]

    async def test_of_racing_changes_one_wins(self, store: Store) -> None:
        job = sample_job()
        wins: list[Job] = []

        async def start(number: int) -> None:
            mine = begun(job, token=f"token-{number}")
            [won] = await store.replace([Change(mine, job.revision)])
            wins.extend([mine] * won)

        async with store:
            await store.insert([job])
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(start, number)
            assert len(wins) == 1
            assert list(await store.get([job.id])) == wins

    # delete

    async def test_a_deleted_job_is_forgotten(self, store: Store) -> None:
        gone, kept = sample_job(idempotency_key="k"), sample_job()
        async with store:
            await store.insert([gone, kept])
            await ended(store, gone, b'"wide"')
            assert list(await store.delete([new_job_id(), gone.id])) == [False, True]
            assert list(await store.delete([gone.id])) == [False]
            assert list(await store.get([gone.id, kept.id])) == [None, kept]
            assert ids(await store.take([LANE, MAINTENANCE_LANE], now=NOW, until=NOW, limit=9)) == [
                kept.id
            ]

    async def test_of_racing_deletions_one_finds_the_job(self, store: Store) -> None:
        job, found = sample_job(), list[bool]()

        async def delete() -> None:
            found.extend(await store.delete([job.id]))

        async with store:
            await store.insert([job])
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(delete)
        assert sorted(found) == [False] * 9 + [True]

    async def test_deleting_frees_the_idempotency_key(self, store: Store) -> None:
        first, second = sample_job(idempotency_key="k"), sample_job(idempotency_key="k")
        async with store:
            await store.insert([first])
            await store.delete([first.id])
            assert await store.insert([second]) == [second]
            assert await store.get([first.id, second.id]) == [None, second]

    async def test_a_new_job_has_nothing_of_a_deleted_one(self, store: Store) -> None:
        old, new = sample_job(retry=Retry(max_attempts=3)), sample_job()
        async with store:
            await store.insert([old])
            failed, _ = failed_attempts(old)
            await store.replace([Change(failed, old.revision)])
            await ended(store, failed, b'"old"')
            await store.delete([old.id])
            await store.insert([new])
            assert await store.get([new.id]) == [new]

    async def test_a_job_inserted_again_has_no_errors_of_its_deleted_self(
        self, store: Store
    ) -> None:
        job = sample_job(retry=Retry(max_attempts=3))
        failed, _ = failed_attempts(job)
        async with store:
            await store.insert([job])
            await store.replace([Change(failed, job.revision)])
            await store.delete([job.id])
            await store.insert([job])
            assert await store.get([job.id]) == [job]

    # any call

    async def test_a_call_may_have_hundreds_of_items(self, store: Store) -> None:
        jobs = [sample_job(idempotency_key=f"k{number}") for number in range(MANY)]
        started = [begun(job) for job in jobs]
        async with store:
            assert list(await store.insert(jobs)) == jobs
            assert list(await store.insert(jobs)) == jobs
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=MANY)) == ids(jobs)
            changes = [Change(job, job.revision - 1) for job in started]
            assert list(await store.replace(changes)) == [True] * MANY
            assert list(await store.get(ids(started[::-1]))) == started[::-1]
            assert list(await store.delete(ids(jobs))) == [True] * MANY
            assert list(await store.get(ids(jobs))) == [None] * MANY

    async def test_an_unreadable_job_harms_no_other(self, store: Store) -> None:
        bad, good = unreadable_job(), sample_job()
        async with store:
            await store.insert([bad, good])
            assert list(await store.get([good.id])) == [good]
            try:
                assert list(await store.get([bad.id])) == [bad]
            except UnreadableJob as error:
                assert error.job_id == bad.id  # noqa: PT017  # stores of objects can read it
            # First in line, and alone in a call: it is skipped, not returned again and again.
            taken = [await store.take([LANE], now=NOW, until=LATER, limit=1) for _ in "12"]
            assert good.id in [job.id for some in taken for job in some]
            assert list(await store.delete([bad.id, good.id])) == [True, True]

    # open and close

    async def test_closing_and_opening_again_loses_nothing(self, store: Store) -> None:
        waiting, keyed = sample_job(), sample_job(idempotency_key="k")
        async with store:
            await store.insert([waiting, keyed])
            done = await ended(store, keyed, b'{"n":1}')
        async with store:
            assert await store.get([waiting.id, keyed.id]) == [waiting, done]
            assert await store.insert([sample_job(idempotency_key="k")]) == [done]
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == [waiting.id]


class TakingRules:
    """The rules of take."""

    async def test_take_picks_what_is_due_longest_first(self, store: Store) -> None:
        jobs = [sample_job(created_at=NOW + timedelta(seconds=n)) for n in (5, 1, 9, 3)]
        now = NOW + timedelta(seconds=6)
        async with store:
            await store.insert(jobs)
            taken = await store.take([LANE], now=now, until=LATER, limit=10)
        assert ids(taken) == ids([jobs[1], jobs[3], jobs[0]])

    async def test_a_job_is_due_at_its_very_moment_and_not_before(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            just_before = NOW - timedelta(microseconds=1)
            assert list(await store.take([LANE], now=just_before, until=LATER, limit=1)) == []
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=1)) == [job.id]

    async def test_jobs_due_at_one_moment_are_taken_in_the_order_they_came(
        self, store: Store
    ) -> None:
        jobs = [sample_job() for _ in range(20)]
        async with store:
            await store.insert(jobs[:12])
            await store.insert(jobs[12:])
            taken = await store.take([LANE], now=NOW, until=LATER, limit=15)
        assert ids(taken) == ids(jobs[:15])

    async def test_take_moves_the_due_moment_and_nothing_else(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            expected = job.changed(due_at=LATER)
            assert list(await store.take([LANE], now=NOW, until=LATER, limit=1)) == [expected]
            assert list(await store.get([job.id])) == [expected]

    async def test_a_taken_job_comes_up_again_at_the_new_moment(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            await store.take([LANE], now=NOW, until=LATER, limit=1)
            before = LATER - timedelta(microseconds=1)
            assert list(await store.take([LANE], now=before, until=LATER, limit=1)) == []
            assert ids(await store.take([LANE], now=LATER, until=LATER, limit=1)) == [job.id]

    async def test_one_call_takes_a_job_once_whatever_the_new_moment(self, store: Store) -> None:
        jobs = [sample_job(), sample_job()]
        async with store:
            await store.insert(jobs)
            assert ids(await store.take([LANE, LANE], now=NOW, until=NOW, limit=9)) == ids(jobs)

    async def test_a_job_that_was_written_twice_with_one_moment_is_taken_once(
        self, store: Store
    ) -> None:
        job = sample_job()
        again = job.changed(revision=job.revision + 1)
        async with store:
            await store.insert([job])
            assert list(await store.replace([Change(again, job.revision)])) == [True]
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == [job.id]

    async def test_a_taken_job_can_be_replaced_by_what_was_read_before(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            await store.take([LANE], now=NOW, until=LATER, limit=1)
            assert list(await store.replace([Change(begun(job), job.revision)])) == [True]

    async def test_take_keeps_to_its_lanes_and_its_limit(self, store: Store) -> None:
        default = [sample_job() for _ in range(3)]
        high = [sample_job(queue="high", created_at=NOW - timedelta(seconds=1))]
        other = [sample_job(queue="other")]
        async with store:
            await store.insert([*default, *high, *other])
            taken = await store.take([LANE, "high"], now=NOW, until=LATER, limit=3)
            rest = await store.take([LANE, "high"], now=NOW, until=LATER, limit=3)
        assert ids(taken) == ids([*high, *default[:2]])
        assert ids(rest) == ids(default[2:])

    async def test_a_limit_of_zero_takes_nothing(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            assert list(await store.take([LANE], now=NOW, until=LATER, limit=0)) == []
            assert list(await store.get([job.id])) == [job]

    async def test_lanes_are_compared_exactly(self, store: Store) -> None:
        jobs = [sample_job(queue=name) for name in LOOKALIKES]
        async with store:
            await store.insert(jobs)
            for job in jobs:
                taken = await store.take([job.lane], now=NOW, until=LATER, limit=MANY)
                assert ids(taken) == [job.id], job.lane

    async def test_a_job_is_taken_where_its_newest_state_puts_it(self, store: Store) -> None:
        job = sample_job()
        started = begun(job)
        async with store:
            await store.insert([job])
            await store.replace([Change(started, job.revision)])
            assert list(await store.take([LANE], now=LATER, until=LATER, limit=1)) == []
            lapse = NOW + timedelta(seconds=30)
            assert ids(await store.take([MAINTENANCE_LANE], now=lapse, until=LATER, limit=1)) == [
                job.id
            ]

    async def test_what_is_due_never_is_never_taken(self, store: Store) -> None:
        job = sample_job(retention=None)
        async with store:
            await store.insert([job])
            done = await ended(store, job, b"1")
            assert done.due_at is None
            long_after = NOW + timedelta(days=36500)
            lanes = [LANE, MAINTENANCE_LANE]
            assert list(await store.take(lanes, now=long_after, until=long_after, limit=9)) == []

    async def test_racing_takers_never_get_the_same_job(self, store: Store) -> None:
        jobs = [sample_job() for _ in range(60)]
        taken: list[Job] = []

        async def take() -> None:
            taken.extend(await store.take([LANE], now=NOW, until=LATER, limit=4))

        async with store:
            await store.insert(jobs)
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(take)
        assert sorted(ids(taken)) == sorted(ids(jobs))


@pytest.mark.anyio
class StoreConformance(StoringRules, TakingRules, SharingConformance):
    """The contract of `asyncjobs.protocols.Store`, as tests.

    Override the fixture `store`: it returns a new, empty, unopened store for each test. If several
    processes may open the data, override `opener`, too; see `SharingConformance`. Each power that
    the store declares has its own suite.
    """

    #: Declared powers whose suites another class inherits for this kind of store.
    tested_elsewhere: frozenset[type] = frozenset()

    async def test_each_declared_power_has_its_suite(self, store: Store) -> None:
        suites = {
            power: suite
            for power, suite in SUITES.items()
            if power in store.powers - self.tested_elsewhere and not isinstance(self, suite)
        }
        assert not suites, f"Inherit {', '.join(suite.__name__ for suite in suites.values())}."

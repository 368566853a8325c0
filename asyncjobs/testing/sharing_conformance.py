"""The conformance suite of stores with several openers, in one process and in several."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import pytest

from asyncjobs.core.output import ReadFrom
from asyncjobs.protocols import Change, OutputStreams, Store, power_of
from asyncjobs.testing.racing import (
    Opener,
    SecondProcess,
    append_many,
    count_up,
    insert_keyed,
    play_both,
    second_process,
    take_all,
)
from asyncjobs.testing.samples import begun, ids, sample_job

_ROUNDS = 25
_KEYS = 40
_JOBS = 120


class TwoOpeners:
    """The fixtures of a suite that opens the data of a store a second time."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("Override the fixture `store`.")

    @pytest.fixture
    def opener(self) -> Opener:
        pytest.skip("Override the fixture `opener` for data that several processes may open.")

    @pytest.fixture
    def other(self, opener: Opener) -> Store:
        """Make a second store of the data."""
        return opener()


@pytest.mark.anyio
class SharingConformance(TwoOpeners):
    """The contract of `asyncjobs.protocols.Store` for data that has several openers.

    Override the fixture `store`, and the fixture `opener`: it returns a function that makes
    another, unopened store of the same data. The function is sent to a second process by pickling,
    so it is one of a module, or a `functools.partial` of a function or class. Without `opener` the
    tests are skipped.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def process(cls) -> Generator[SecondProcess]:
        """Provide a second process to the tests of this class."""
        with second_process() as process:
            yield process

    async def test_what_one_opener_writes_the_other_reads(self, store: Store, other: Store) -> None:
        job = sample_job(idempotency_key="k")
        async with store, other:
            await store.insert([job])
            assert list(await other.get([job.id])) == [job]
            assert list(await other.insert([sample_job(idempotency_key="k")])) == [job]
            assert list(await other.replace([Change(begun(job), job.revision)])) == [True]
            assert list(await store.get([job.id])) == [begun(job)]
            assert list(await store.replace([Change(begun(job), job.revision)])) == [False]
            await other.delete([job.id])
            assert list(await store.get([job.id])) == [None]

    async def test_two_openers_lose_no_update(self, store: Store, other: Store) -> None:
        job = sample_job()
        count = partial(count_up, job_id=job.id, times=_ROUNDS)
        async with store, other:
            await store.insert([job])
            await play_both(count, store, count, other)
            [found] = await store.get([job.id])
        assert found is not None
        assert found.revision == job.revision + 2 * _ROUNDS

    async def test_two_openers_never_take_the_same_job(self, store: Store, other: Store) -> None:
        jobs = [sample_job() for _ in range(_JOBS)]
        take = partial(take_all, limit=2)
        async with store, other:
            await store.insert(jobs)
            mine, theirs = await play_both(take, store, take, other)
            # Racers may skip jobs that the other one holds at that moment.
            rest = await take(store)
        assert sorted(mine + theirs + rest) == sorted(ids(jobs))

    async def test_two_openers_store_one_job_for_a_key(self, store: Store, other: Store) -> None:
        insert = partial(insert_keyed, number=_KEYS)
        async with store, other:
            (mine, stored), (theirs, found) = await play_both(insert, store, insert, other)
            there = [job.id for job in await store.get(mine + theirs) if job is not None]
        assert stored == found
        assert sorted(there) == sorted(stored)

    async def test_another_process_loses_no_update(
        self, store: Store, opener: Opener, process: SecondProcess
    ) -> None:
        job = sample_job()
        count = partial(count_up, job_id=job.id, times=_ROUNDS)
        async with store:
            await store.insert([job])
            await process.race(opener, count, partial(count, store))
            [found] = await store.get([job.id])
        assert found is not None
        assert found.revision == job.revision + 2 * _ROUNDS

    async def test_another_process_never_takes_the_same_job(
        self, store: Store, opener: Opener, process: SecondProcess
    ) -> None:
        jobs = [sample_job() for _ in range(_JOBS)]
        take = partial(take_all, limit=2)
        async with store:
            await store.insert(jobs)
            mine, theirs = await process.race(opener, take, partial(take, store))
            rest = await take(store)
        assert sorted(mine + theirs + rest) == sorted(ids(jobs))

    async def test_another_process_stores_one_job_for_a_key(
        self, store: Store, opener: Opener, process: SecondProcess
    ) -> None:
        insert = partial(insert_keyed, number=_KEYS)
        async with store:
            (mine, stored), (theirs, found) = await process.race(
                opener, insert, partial(insert, store)
            )
            there = [job.id for job in await store.get(mine + theirs) if job is not None]
        assert stored == found
        assert sorted(there) == sorted(stored)

    async def test_another_process_appends_without_gap(
        self, store: Store, opener: Opener, process: SecondProcess
    ) -> None:
        streams = power_of(store, OutputStreams)
        if streams is None:
            pytest.skip("The store keeps no output.")
        job = begun(sample_job())
        append = partial(append_many, job_id=job.id, number=_ROUNDS)
        async with store:
            await store.insert([job])
            mine, theirs = await process.race(opener, append, partial(append, store))
            [part] = await streams.read_output([ReadFrom(job.id, "log", 0, 10**9)])
        ends = [2 * number + 2 for number in range(2 * _ROUNDS)]
        assert sorted(mine + theirs) == ends
        assert part is not None
        assert [chunk.end for chunk in part.chunks] == ends
        assert b"".join(chunk.data for chunk in part.chunks) == b"ab" * len(ends)

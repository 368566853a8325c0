"""A faulty store fails as configured, and otherwise behaves like the wrapped store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from asyncjobs.core.job import JobId, new_job_id
from asyncjobs.core.output import Append, ReadFrom, StreamKind
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import (
    Change,
    ChangeNotices,
    Listing,
    OutputStreams,
    Selection,
    Store,
    StoreClock,
    Tallies,
    Transactions,
    check_powers,
)
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.stores.redis import RedisStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import (
    Fate,
    Faults,
    FaultyStore,
    ListingConformance,
    OutputStreamsConformance,
    StoreCall,
    StoreConformance,
    TalliesConformance,
    sample_job,
)
from asyncjobs.testing.samples import LANE, LATER, NOW, begun

pytestmark = pytest.mark.anyio


class Bare:
    """A store with five methods that needs no opening."""

    def __init__(self) -> None:
        inner = MemoryStore()
        self.__aenter__, self.__aexit__ = inner.__aenter__, inner.__aexit__
        self.insert, self.get, self.replace = inner.insert, inner.get, inner.replace
        self.take, self.delete = inner.take, inner.delete
        self.powers: frozenset[type] = frozenset()


class Talkative(MemoryStore):
    """Sends three notices, and has a clock."""

    powers = MemoryStore.powers | {ChangeNotices, StoreClock}

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        for _ in range(3):
            yield [new_job_id()]

    async def now(self) -> datetime:
        return NOW


STORES: list[Callable[[], Store]] = [
    MemoryStore,
    Bare,  # type: ignore[list-item]  # its methods are those of an instance
    Talkative,
    lambda: SqliteStore(Path("jobs.db")),
    lambda: RedisStore("redis://localhost"),
    lambda: PostgresStore("postgresql://localhost"),
]


class TestFaultyStoreWithoutFaults(
    StoreConformance, ListingConformance, OutputStreamsConformance, TalliesConformance
):
    @pytest.fixture
    def store(self) -> FaultyStore:
        return FaultyStore(MemoryStore())


@pytest.mark.parametrize("make", STORES, ids=["memory", "bare", "all", "sqlite", "redis", "pg"])
def test_it_declares_the_powers_of_the_wrapped_store(make: Callable[[], Store]) -> None:
    store = make()
    faulty = FaultyStore(store)
    passed_on = {ChangeNotices, Listing, OutputStreams, StoreClock, Tallies, Transactions}
    assert faulty.powers == passed_on & store.powers
    check_powers(faulty)


async def test_a_fault_before_a_call_prevents_it() -> None:
    job = sample_job()
    async with FaultyStore(MemoryStore(), Faults(before=1)) as store:
        with pytest.raises(StoreUnavailable, match="on the way there"):
            await store.insert([job])
        assert await store.store.get([job.id]) == [None]
    assert store.calls == [StoreCall("insert", (job.id,), Fate.NOT_DONE)]


async def test_a_fault_after_a_call_only_loses_the_answer() -> None:
    job = sample_job()
    async with FaultyStore(MemoryStore()) as store:
        await store.insert([job])
        store.faults = Faults(after=1)
        with pytest.raises(StoreUnavailable, match="answer to replace was lost"):
            await store.replace([Change(begun(job), job.revision)])
        store.faults = Faults()
        assert await store.get([job.id]) == [begun(job)]
    fates = [(call.method, call.fate) for call in store.calls]
    assert fates == [
        ("insert", Fate.ANSWERED),
        ("replace", Fate.ANSWER_LOST),
        ("get", Fate.ANSWERED),
    ]


async def test_every_method_can_fail() -> None:
    job = sample_job()
    async with FaultyStore(Talkative(), Faults(before=1)) as store:
        calls: list[Awaitable[Any]] = [
            store.insert([job]),
            store.get([job.id]),
            store.replace([]),
            store.take([LANE], now=NOW, until=LATER, limit=1),
            store.delete([job.id]),
            store.list(Selection(), limit=1),
            store.count_before(job, until=NOW, most=1),
            store.append([Append(job.id, "log", StreamKind.TEXT, 1, 1, b"x", 9, 9)]),
            store.begin_epoch(job.id, 2),
            store.read_output([ReadFrom(job.id, "log", 0, 9)]),
            store.outputs([job.id]),
            store.now(),
            heard(store.changes()),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable):
                await call
    assert len(store.calls) == 13
    assert {call.fate for call in store.calls} == {Fate.NOT_DONE}


async def heard(changes: AsyncIterator[Sequence[JobId]]) -> None:
    async for _ in changes:
        pass


async def test_a_fault_after_a_call_loses_a_notice() -> None:
    async with FaultyStore(Talkative(), Faults(after=1, most=2)) as store:
        told: list[Any] = [ids async for ids in store.changes()]
    assert len(told) == 1
    assert await store.now() == NOW


async def test_faults_are_limited_by_only_and_most() -> None:
    async with FaultyStore(MemoryStore(), Faults(before=1, only=["get"], most=2)) as store:
        await store.insert([])
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.get([])
        await store.get([])


async def test_the_same_seed_causes_the_same_faults() -> None:
    async def course(seed: int) -> list[Fate]:
        async with FaultyStore(MemoryStore(), Faults(before=0.2, after=0.2), seed=seed) as store:
            for _ in range(200):
                with suppress(StoreUnavailable):
                    await store.get([])
        return [call.fate for call in store.calls]

    assert await course(1) == await course(1)
    assert await course(1) != await course(2)
    for fate in (Fate.NOT_DONE, Fate.ANSWER_LOST):
        assert (await course(1)).count(fate) in range(20, 60)


async def test_errors_of_the_wrapped_store_are_recorded() -> None:
    async with FaultyStore(MemoryStore()) as store:
        with pytest.raises(AttributeError):
            await store.insert([None])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            await store.take(None, now=NOW, until=NOW, limit=1)  # type: ignore[arg-type]
    assert store.calls == [StoreCall("take", (), Fate.RAISED)]

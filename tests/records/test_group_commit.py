"""Concurrent calls are merged, and no caller's error affects another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncjobs import Job
from asyncjobs.core.job import JobId, new_job_id
from asyncjobs.core.output import Append, Appended, ReadFrom, StreamKind
from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.protocols import InlineReads, OutputStreams
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.group_commit import Bound, GroupCommit, GroupCommitStore
from asyncjobs.records.repository import Repository
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import ManualClock, sample_job
from asyncjobs.testing.samples import begun

pytestmark = pytest.mark.anyio


class Recorder:
    """Doubles numbers slowly, and records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = anyio.Event()

    async def double(self, numbers: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(numbers))
        await self.gate.wait()
        if 666 in numbers:
            raise OSError("unlucky")
        return [2 * number for number in numbers]


async def test_a_single_call_is_sent_alone() -> None:
    recorder = Recorder()
    recorder.gate.set()
    async with anyio.create_task_group() as tasks:
        merged = GroupCommit(recorder.double, tasks)
        assert await merged([1]) == [2]
        assert await merged([2, 3]) == [4, 6]
    assert recorder.batches == [[1], [2, 3]]


async def test_calls_during_another_call_are_merged_with_their_own_answers() -> None:
    recorder = Recorder()
    answers: dict[int, Sequence[int]] = {}

    async def ask(number: int) -> None:
        answers[number] = await merged([number, number + 100])

    async with anyio.create_task_group() as tasks:
        merged = GroupCommit(recorder.double, tasks)
        tasks.start_soon(ask, 0)
        await anyio.wait_all_tasks_blocked()
        for number in range(1, 20):
            tasks.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        recorder.gate.set()
    assert len(recorder.batches) == 2
    assert answers == {n: [2 * n, 2 * n + 200] for n in range(20)}


async def test_a_batch_has_a_size_limit() -> None:
    recorder = Recorder()
    recorder.gate.set()
    async with anyio.create_task_group() as tasks:
        merged = GroupCommit(recorder.double, tasks, max_batch_size=3)
        for number in range(8):
            tasks.start_soon(merged, [number])
    assert max(map(len, recorder.batches)) == 3
    assert sorted(chain.from_iterable(recorder.batches)) == list(range(8))


async def test_an_error_is_raised_to_the_call_that_caused_it() -> None:
    recorder = Recorder()
    failed: list[int] = []

    async def ask(number: int) -> None:
        try:
            await merged([number])
        except OSError:
            failed.append(number)

    async with anyio.create_task_group() as tasks:
        merged = GroupCommit(recorder.double, tasks)
        tasks.start_soon(ask, 1)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask, 666)
        tasks.start_soon(ask, 2)
        await anyio.wait_all_tasks_blocked()
        recorder.gate.set()
        await anyio.wait_all_tasks_blocked()
        assert await merged([3]) == [6]
    assert failed == [666]


async def test_a_cancelled_caller_gets_its_answer_and_affects_no_others() -> None:
    recorder = Recorder()
    answers: list[int] = []

    async def ask(number: int) -> None:
        answers.extend(await merged([number]))

    async with anyio.create_task_group() as tasks:
        merged = GroupCommit(recorder.double, tasks)
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(ask, 1)
            await anyio.wait_all_tasks_blocked()
            impatient.start_soon(ask, 2)
            tasks.start_soon(ask, 3)
            await anyio.wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
            recorder.gate.set()
        await anyio.wait_all_tasks_blocked()
        assert await merged([4]) == [8]
    assert sorted(answers) == [2, 4, 6]
    assert sorted(chain.from_iterable(recorder.batches)) == [1, 2, 3, 4]


async def test_calls_under_way_end_when_everything_is_cancelled() -> None:
    recorder = Recorder()
    ended: list[int] = []

    async def ask(number: int) -> None:
        await merged([number])
        ended.append(number)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            merged = GroupCommit(recorder.double, tasks)
            for number in range(3):
                tasks.start_soon(ask, number)
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            recorder.gate.set()
    assert sorted(ended) == [0, 1, 2]


class Shelf(MemoryStore):
    """Records the number of ids in each read."""

    def __init__(self, *, reads_at_once: bool) -> None:
        super().__init__()
        self.powers = frozenset({InlineReads} if reads_at_once else ())
        self.asked: list[int] = []

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        self.asked.append(len(ids))
        return await super().get(ids)


@pytest.mark.parametrize(("reads_at_once", "asked"), [(True, [1, 1, 1]), (False, [3])])
async def test_reads_are_merged_unless_the_store_has_immediate_reads(
    reads_at_once: bool, asked: list[int]
) -> None:
    shelf = Shelf(reads_at_once=reads_at_once)
    async with anyio.create_task_group() as tasks:
        store = GroupCommitStore(shelf, tasks)
        for _ in range(3):
            tasks.start_soon(store.get, [new_job_id()])
    assert shelf.asked == asked


class Scroll(MemoryStore):
    """Records the number of appends of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        self.sizes.append(len(appends))
        return await super().append(appends)


class Stuck(MemoryStore):
    """Answers no call that concerns output until the gate is open."""

    powers = MemoryStore.powers - {InlineReads}

    def __init__(self) -> None:
        super().__init__()
        self.gate = anyio.Event()

    async def append(self, *_: object) -> Any:
        await self.gate.wait()
        return [None]

    begin_epoch = read_output = outputs = append


async def test_concurrent_appends_are_merged() -> None:
    job, scroll = begun(sample_job()), Scroll()
    ends: list[int] = []

    async def append(number: int) -> None:
        data = Append(job.id, f"s{number % 3}", StreamKind.BYTES, 1, 1, b"x", 99, 999)
        [answer] = await store.append([data])
        ends.append(answer.end)

    await scroll.insert([job])
    async with anyio.create_task_group() as tasks:
        store = GroupCommitStore(scroll, tasks)
        for number in range(9):
            tasks.start_soon(append, number)
    assert sum(scroll.sizes) == 9
    assert len(scroll.sizes) < 9
    assert sorted(ends) == [1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_calls_for_output_have_a_time_limit() -> None:
    job_id = new_job_id()
    async with anyio.create_task_group() as tasks:
        store = GroupCommitStore(stuck := Stuck(), tasks)
        store.set_limit(0.01)
        calls = [
            store.append([Append(job_id, "output", StreamKind.TEXT, 1, 1, b"x", 99, 999)]),
            store.begin_epoch(job_id, 2),
            store.read_output([ReadFrom(job_id, "output", 0, 999)]),
            store.outputs([job_id]),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable):
                await call
        stuck.gate.set()


async def test_a_store_without_output_refuses_calls_for_it() -> None:
    async with anyio.create_task_group() as tasks:
        store = GroupCommitStore(Shelf(reads_at_once=True), tasks)
        assert OutputStreams not in store.powers
        repository = Repository(store, ChangeFeed(poll=1), ManualClock())
        assert not repository.has_output
        with pytest.raises(ConfigurationError, match="output of jobs"):
            await repository.outputs([new_job_id()])


async def test_callers_with_the_same_question_share_a_call_under_way() -> None:
    asked: list[str] = []
    gate = anyio.Event()
    answers: list[str] = []

    async def ask(key: str) -> None:
        async def call() -> str:
            asked.append(key)
            await gate.wait()
            return key.upper()

        answers.append(await bound.wait_for(call, shared_as=key))

    async with anyio.create_task_group() as tasks:
        bound = Bound(60, tasks)
        async with anyio.create_task_group() as callers:
            for key in "aaba":
                callers.start_soon(ask, key)
            await anyio.wait_all_tasks_blocked()
            gate.set()
        assert sorted(asked) == ["a", "b"]
        await ask("a")
    assert sorted(asked) == ["a", "a", "b"]
    assert sorted(answers) == ["A", "A", "A", "A", "B"]


async def test_a_shared_call_that_takes_too_long_fails_for_each_caller() -> None:
    failed: list[str] = []

    async def ask() -> None:
        with pytest.raises(StoreUnavailable):
            await bound.wait_for(anyio.sleep_forever, shared_as="job")
        failed.append("job")

    async with anyio.create_task_group() as tasks:
        bound = Bound(0.05, tasks)
        async with anyio.create_task_group() as callers:
            callers.start_soon(ask)
            callers.start_soon(ask)
    assert failed == ["job", "job"]

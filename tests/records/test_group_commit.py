"""Concurrent calls are merged, and no caller's error affects another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import anyio
import anyio.lowlevel
import pytest

from asyncjobs import Job
from asyncjobs.core.job import JobId, new_job_id
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import InlineReads
from asyncjobs.records.group_commit import Bound, GroupCommit, GroupCommitStore
from asyncjobs.stores.memory import MemoryStore

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

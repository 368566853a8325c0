"""Callback URLs are called at the end of jobs: at least once, by any process, up to a limit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    Job,
    JobContext,
    JobId,
    JobStatus,
    Policy,
    Selection,
    Settings,
)
from asyncjobs.core.lifecycle import CALLBACK_PATIENCE, owes_callback
from asyncjobs.errors import ConfigurationError, InvalidCallback, StoreUnavailable
from asyncjobs.protocols import CallbackResult, Change, Store
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, LoopClock, ManualClock
from tests.queues import Make, simulated
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

URL = "https://hooks.example.com/ended"
TOLD_OF = EnqueueOptions(callback_url=URL)
DAY = timedelta(days=1)

# The machine has to execute each poll of the simulated days.
SEDATE = Settings(
    poll_interval=timedelta(hours=1), sweep_interval=timedelta(minutes=10), lease=timedelta(hours=3)
)


class Receiver:
    """A messenger with its receiver in this process; it returns its answers in turn, then yes."""

    timeout = timedelta(seconds=2)

    def __init__(
        self, *answers: CallbackResult, concurrency: int = 10, host_concurrency: int = 10
    ) -> None:
        self.answers = list(answers)
        self.concurrency = concurrency
        self.host_concurrency = host_concurrency
        self.told: list[tuple[Job, datetime]] = []
        self.open = anyio.Event()
        self.open.set()
        self.at_once = 0
        self.most = 0

    def check(self, url: str, /) -> None:
        if url != URL:
            raise InvalidCallback("it is another")

    async def send(self, job: Job, /, *, now: datetime) -> CallbackResult:
        self.told.append((job, now))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.open.wait()
        finally:
            self.at_once -= 1
        return self.answers.pop(0) if self.answers else CallbackResult()


def double_on(jobs: AsyncJobs) -> AsyncJobs:
    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    return jobs


async def settled(store: Any) -> None:
    """Wait until every job has ended and has no pending callback."""
    with anyio.fail_after(60):
        await settle(store, pause=0.005)


async def settle(store: Any, *, pause: float) -> None:
    while not all(map(is_settled, (await store.list(Selection(), limit=100)).jobs)):  # noqa: ASYNC110
        await anyio.sleep(pause)


def is_settled(job: Job) -> bool:
    return job.status.terminal and not owes_callback(job)


async def test_the_end_of_a_job_is_sent_and_recorded(make: Make, beside: Any) -> None:
    receiver = Receiver()
    async with double_on(make(callbacks=receiver)) as jobs:
        job = await jobs.enqueue("double", 4, options=TOLD_OF)
        done = await jobs.wait(job.id)
        await settled(beside)
        after = await jobs.find(job.id)
    [(told, _)] = receiver.told
    assert (told.id, told.result, told.callback_url) == (job.id, 8, URL)
    assert after.callback is not None
    assert after.callback.told_at is not None
    assert (after.status, after.version, after.result) == (done.status, done.version, 8)


async def test_callbacks_are_sent_at_once_within_the_concurrency_limit(
    make: Make, beside: Any
) -> None:
    receiver = Receiver(concurrency=1)
    seldom = Settings(sweep_interval=timedelta(hours=1))
    async with double_on(make(callbacks=receiver, settings=seldom)) as jobs:
        for number in range(4):
            await jobs.enqueue("double", number, options=TOLD_OF)
        await until(lambda: len(receiver.told) == 4)
        await settled(beside)
    assert receiver.most == 1


async def test_a_job_without_a_callback_url_sends_no_callback(make: Make) -> None:
    receiver = Receiver()
    async with double_on(make(callbacks=receiver)) as jobs:
        done = await jobs.wait((await jobs.enqueue("double", 4)).id)
    assert (done.callback, receiver.told) == (None, [])


async def test_a_url_is_checked_before_the_job_is_stored(make: Make, beside: Any) -> None:
    wrong = EnqueueOptions(callback_url="https://elsewhere.example.com/")
    async with double_on(make(callbacks=Receiver())) as jobs:
        with pytest.raises(InvalidCallback):
            await jobs.enqueue("double", 4, options=wrong)
    async with double_on(make()) as jobs:
        with pytest.raises(ConfigurationError, match="set `callbacks` of AsyncJobs"):
            await jobs.enqueue("double", 4, options=TOLD_OF)
    assert not (await beside.list(Selection(), limit=1)).jobs


async def test_cancelled_and_failed_jobs_send_callbacks_as_well(make: Make) -> None:
    receiver = Receiver()
    jobs = make(callbacks=receiver)
    outside = jobs.external("outside", payload=int, result=int)
    async with jobs:
        gone = await jobs.enqueue(outside, 1, options=TOLD_OF)
        await jobs.cancel(gone.id)
        failed = await jobs.enqueue(outside, 1, options=TOLD_OF)
        await jobs.fail(failed.id, "It was bad.")
        await until(lambda: len(receiver.told) == 2)
    assert {job.status for job, _ in receiver.told} == {JobStatus.CANCELLED, JobStatus.FAILED}


async def test_a_retried_job_sends_its_own_callback(make: Make, beside: Any) -> None:
    receiver = Receiver()
    async with double_on(make(callbacks=receiver)) as jobs:
        job = await jobs.wait((await jobs.enqueue("double", 4, options=TOLD_OF)).id)
        await jobs.retry(job.id)
        await until(lambda: len(receiver.told) == 2)
        await settled(beside)
    assert len({told.id for told, _ in receiver.told}) == 2


async def test_processes_share_the_calls_and_none_is_made_twice(make: Make, beside: Any) -> None:
    receivers = [Receiver(concurrency=3) for _ in range(3)]
    async with (
        double_on(make(callbacks=receivers[0])) as jobs,
        double_on(make(callbacks=receivers[1])),
        double_on(make(callbacks=receivers[2])),
    ):
        made = [await jobs.enqueue("double", number, options=TOLD_OF) for number in range(60)]
        await settled(beside)
    told = [job.id for receiver in receivers for job, _ in receiver.told]
    assert sorted(told) == sorted(job.id for job in made)


async def test_hanging_calls_do_not_block_other_work(make: Make, beside: Any) -> None:
    receiver = Receiver(concurrency=2)
    receiver.open = anyio.Event()
    brief = Policy(retention=timedelta(0))
    jobs = double_on(make(callbacks=receiver))
    soon_gone = jobs.external("gone", payload=int, result=int, policy=brief)
    async with jobs:
        for number in range(5):
            await jobs.wait((await jobs.enqueue("double", number, options=TOLD_OF)).id)
        await until(lambda: receiver.at_once == 2)
        gone = await jobs.enqueue(soon_gone, 1)
        await jobs.complete(gone.id, 1)
        await until(lambda: is_deleted(beside, gone.id))
        assert (receiver.most, len(receiver.told)) == (2, 2)
        receiver.open.set()
        await settled(beside)
    assert (receiver.most, len(receiver.told)) == (2, 5)


async def is_deleted(store: Any, job_id: JobId) -> bool:
    return bool(await store.get([job_id]) == [None])


async def test_a_process_without_callbacks_leaves_them_to_others(make: Make, beside: Any) -> None:
    receiver = Receiver()
    async with double_on(make(callbacks=receiver, dispatcher="worker")) as web:
        job = await web.enqueue("double", 4, options=TOLD_OF)
    async with double_on(make()) as silent:
        await silent.wait(job.id)
        [left] = await beside.get([job.id])
        assert owes_callback(left)
    async with double_on(make(callbacks=receiver)):
        await settled(beside)
    assert [told.id for told, _ in receiver.told] == [job.id]


async def test_a_call_whose_outcome_was_not_recorded_is_repeated(
    make: Make, store: Any, beside: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock, receiver, unrecorded = ManualClock(), Receiver(), Unrecorded(store)
    async with double_on(make(store=unrecorded, callbacks=receiver, clock=clock)) as jobs:
        await jobs.enqueue("double", 4, options=TOLD_OF)
        await until(lambda: "was not stored" in caplog.text)
    async with make(callbacks=receiver, clock=clock):
        clock.advance(timedelta(minutes=1))
        await settled(beside)
    [(first, then), (second, later)] = receiver.told
    assert (first.id, first.version) == (second.id, second.version)
    assert later - then > receiver.timeout


class Unrecorded(FaultyStore):
    """Is unavailable once: when the outcome of the first call is recorded."""

    lost = 0

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        if not self.lost and any(c.job.callback and c.job.callback.calls for c in changes):
            self.lost += 1
            raise StoreUnavailable("unrecorded", "it is away")
        return await super().replace(changes)


class Bug(Receiver):
    """Breaks at the first call."""

    async def send(self, job: Job, /, *, now: datetime) -> CallbackResult:
        await super().send(job, now=now)
        if len(self.told) == 1:
            raise ZeroDivisionError
        return CallbackResult()


async def owed(store: Store, *ids: JobId) -> set[JobId]:
    """Return which of these jobs have a pending callback."""
    return {job.id for job in await store.get(ids) if job is not None and owes_callback(job)}


@asynccontextmanager
async def process(store: Store, receiver: Receiver | None) -> AsyncGenerator[AsyncJobs]:
    jobs = AsyncJobs(store, clock=LoopClock(), settings=SEDATE, callbacks=receiver)
    async with double_on(jobs):
        yield jobs


def test_a_bug_in_a_messenger_ends_neither_the_loop_nor_the_callback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = Bug()

    async def body() -> None:
        store = MemoryStore()
        async with process(store, receiver) as jobs:
            await jobs.wait((await jobs.enqueue("double", 4, options=TOLD_OF)).id)
            await settle(store, pause=60)

    simulated(body)
    assert len(receiver.told) == 2
    assert "ZeroDivisionError" in caplog.text


def test_a_failed_call_is_repeated_after_its_retry_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pauses = [timedelta(hours=1), timedelta(hours=5)]
    receiver = Receiver(
        *(CallbackResult("away", pause) for pause in pauses), CallbackResult("away")
    )

    async def body() -> None:
        store = MemoryStore()
        async with process(store, receiver) as jobs:
            job = await jobs.wait((await jobs.enqueue("double", 4, options=TOLD_OF)).id)
            await settle(store, pause=60)
            callback = (await jobs.find(job.id)).callback
        assert callback is not None
        assert (callback.calls, callback.error, callback.told_at) == (3, "away", None)

    simulated(body)
    moments = [moment for _, moment in receiver.told]
    for pause, before, after in zip(pauses, moments, moments[1:], strict=False):
        assert pause <= after - before <= pause + 2 * SEDATE.sweep_interval
    given_up = [record for record in caplog.records if "given up after 3 calls" in record.message]
    assert [record.levelname for record in given_up] == ["WARNING"]


def test_a_job_is_kept_beyond_its_retention_while_it_is_called_back() -> None:
    receiver = Receiver(CallbackResult("away", 3 * DAY))

    async def body() -> None:
        store = MemoryStore()
        async with process(store, receiver) as jobs:
            job = await jobs.wait((await jobs.enqueue("double", 4, options=TOLD_OF)).id)
            await anyio.sleep(2 * DAY.total_seconds())
            assert (await jobs.find(job.id)).result == 8
            await anyio.sleep(1.1 * DAY.total_seconds())
            assert await store.get([job.id]) == [None]

    simulated(body)
    assert len(receiver.told) == 2


@pytest.mark.parametrize("retention", [DAY, None], ids=["a-day", "for-ever"])
def test_a_callback_that_no_process_can_send_is_given_up(
    retention: timedelta | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        store = MemoryStore()
        web = AsyncJobs(store, clock=LoopClock(), settings=SEDATE, callbacks=Receiver())
        kind = web.external("x", payload=int, result=int, policy=Policy(retention=retention))
        async with web:
            job = await web.enqueue(kind, 1, options=TOLD_OF)
        silent = AsyncJobs(store, clock=LoopClock(), settings=SEDATE)
        silent.external("x", payload=int, result=int)
        async with silent:
            await silent.complete(job.id, 1)
            await anyio.sleep((CALLBACK_PATIENCE - timedelta(hours=1)).total_seconds())
            assert await owed(store, job.id) == {job.id}
            await anyio.sleep(timedelta(hours=2).total_seconds())
            [kept] = await store.get([job.id])
            assert (kept is None) == (retention is not None)
            assert kept is None or not owes_callback(kept)

    simulated(body)
    assert "given up" in caplog.text


SILENT_URL = "https://silent.example.com/ended"
EAGER = Settings(sweep_interval=5, poll_interval=60, lease=timedelta(hours=3))


class Hosts(Receiver):
    """Receivers on two hosts; calls to one of them last until their time limit."""

    timeout = timedelta(seconds=15)

    def __init__(self, *, answers_in: float = 0.05) -> None:
        super().__init__(concurrency=10, host_concurrency=4)
        self.answers_in = answers_in
        self.ended: list[tuple[JobId, float]] = []

    def check(self, url: str, /) -> None: ...

    async def send(self, job: Job, /, *, now: datetime) -> CallbackResult:
        self.told.append((job, now))
        if job.callback_url == SILENT_URL:
            await anyio.sleep(self.timeout.total_seconds())
            return CallbackResult("no answer", timedelta(minutes=5))
        await anyio.sleep(self.answers_in)
        self.ended.append((job.id, anyio.current_time()))
        return CallbackResult()


@asynccontextmanager
async def calling(store: Store, receiver: Receiver) -> AsyncGenerator[AsyncJobs]:
    jobs = AsyncJobs(store, clock=LoopClock(), settings=EAGER, callbacks=receiver)
    async with double_on(jobs):
        yield jobs


@pytest.mark.parametrize("silent", [5, 300])
def test_a_silent_host_leaves_room_for_calls_to_others(silent: int) -> None:
    receiver = Hosts()

    async def body() -> None:
        async with calling(MemoryStore(), receiver) as jobs:
            of_silent = EnqueueOptions(callback_url=SILENT_URL)
            for number in range(silent):
                await jobs.enqueue("double", number, options=of_silent)
            await anyio.sleep(2)
            began = anyio.current_time()
            told = [await jobs.enqueue("double", number, options=TOLD_OF) for number in range(20)]
            await anyio.sleep(10)
            assert {job for job, _ in receiver.ended} == {job.id for job in told}
            # The calls to the silent host continue, four at a time.
            assert max(ended for _, ended in receiver.ended) - began < 3
            await anyio.sleep(600)
            silent_calls = [job for job, _ in receiver.told if job.callback_url == SILENT_URL]
            # At most four are made at a time, for fifteen seconds each.
            assert len(silent_calls) >= min(2 * silent, 0.9 * 4 * 612 / 15)

    simulated(body)


@pytest.mark.parametrize(("answers_in", "seconds"), [(0.05, 4), (2, 120)])
def test_many_calls_to_one_host_are_made_without_pauses(answers_in: float, seconds: int) -> None:
    receiver = Hosts(answers_in=answers_in)

    async def body() -> None:
        async with calling(MemoryStore(), receiver) as jobs:
            for number in range(200):
                await jobs.enqueue("double", number, options=TOLD_OF)
            await anyio.sleep(seconds)
            assert len(receiver.ended) == 200

    simulated(body)


def test_a_long_call_is_made_by_one_process() -> None:
    receivers = [Hosts(), Hosts()]

    async def body() -> None:
        store = MemoryStore()
        async with calling(store, receivers[0]) as jobs, calling(store, receivers[1]):
            options = EnqueueOptions(callback_url=SILENT_URL)
            made = await jobs.wait((await jobs.enqueue("double", 1, options=options)).id)
            await anyio.sleep(60)
            [job] = await store.get([made.id])
            assert job is not None
            assert job.callback is not None
            assert (job.callback.calls, job.callback.error) == (1, "no answer")
        assert len(receivers[0].told) + len(receivers[1].told) == 1

    simulated(body)


def test_another_process_repeats_a_lost_call_within_its_time_limit() -> None:
    """The first process loses its store, as a killed process does."""
    first, second = Hosts(), Hosts()

    async def body() -> None:
        store = MemoryStore()
        lost = FaultyStore(store)
        async with calling(lost, first) as jobs:
            options = EnqueueOptions(callback_url=SILENT_URL)
            job = await jobs.wait((await jobs.enqueue("double", 1, options=options)).id)
            await anyio.sleep(0.1)
            assert len(first.told) == 1
            lost.faults = Faults(before=1)
            async with calling(store, second):
                await anyio.sleep(first.timeout.total_seconds())
                assert [told.id for told, _ in second.told] == [job.id]
            lost.faults = Faults()

    simulated(body)


def test_a_shutdown_waits_for_the_call_under_way_and_starts_no_other() -> None:
    receiver = Receiver(concurrency=1)

    async def answer() -> None:
        await anyio.sleep(3)
        receiver.open.set()

    async def body() -> None:
        receiver.open = anyio.Event()
        store = MemoryStore()
        ids: list[JobId] = []
        async with anyio.create_task_group() as tasks, process(store, receiver) as jobs:
            made = [await jobs.enqueue("double", number, options=TOLD_OF) for number in range(2)]
            ids += [(await jobs.wait(job.id)).id for job in made]
            while not receiver.told:  # noqa: ASYNC110
                await anyio.sleep(0.1)
            tasks.start_soon(answer)
        [(called, _)] = receiver.told
        assert await owed(store, *ids) == {*ids} - {called.id}

    simulated(body)


def test_a_shutdown_does_not_wait_for_ever() -> None:
    receiver = Receiver()

    async def body() -> None:
        receiver.open = anyio.Event()
        store = MemoryStore()
        async with process(store, receiver) as jobs:
            job = await jobs.wait((await jobs.enqueue("double", 4, options=TOLD_OF)).id)
            while not receiver.told:  # noqa: ASYNC110
                await anyio.sleep(0.1)
            began = anyio.current_time()
        assert anyio.current_time() - began < 60
        assert await owed(store, job.id) == {job.id}

    simulated(body)

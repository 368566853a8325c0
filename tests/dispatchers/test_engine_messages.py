"""Messages from an engine are run, or logged and dropped; the engine never sees an error."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus
from asyncjobs.core.job import Delivery, Job, new_job_id
from asyncjobs.dispatchers.engines.messages import (
    AsyncMessageRunner,
    run_message,
    run_message_from_thread,
)
from asyncjobs.dispatchers.engines.push import BlockingClientDispatcher
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import StoreUnavailable
from asyncjobs.portal import portal_for
from asyncjobs.testing import Faults, FaultyStore, sample_job

pytestmark = pytest.mark.every_store
Queue = Callable[..., AsyncJobs]

OURS = "ours"


class Shut(FaultyStore):
    """Cannot be opened for a while."""

    shut = True

    async def __aenter__(self) -> Self:
        if self.shut:
            raise StoreUnavailable("shut", "nobody is there")
        return await super().__aenter__()


class Told(WorkerDispatcher):
    """An engine whose part the tests play."""

    delivery = Delivery.PUSH


@pytest.fixture
def queue(new_store: Callable[[], Any]) -> Queue:
    """Make a queue on the shared store, unless a test passes another one."""

    def make(store: Any = None) -> AsyncJobs:
        jobs = AsyncJobs(store or new_store(), dispatcher=Told())

        @jobs.handler("double")
        async def double(number: int, _job: JobContext) -> int:
            return 2 * number

        return jobs

    return make


def message(job: Job, namespace: str = OURS) -> dict[str, object]:
    return {"namespace": namespace, "id": job.id}


@pytest.mark.anyio
async def test_the_job_that_a_message_names_is_run(queue: Queue) -> None:
    async with queue() as jobs:
        job = (await jobs.enqueue("double", 21)).job
        await run_message(jobs, OURS, message(job))
        assert (await jobs.find(job.id)).result == 42


@pytest.mark.anyio
@pytest.mark.parametrize(
    "odd",
    [
        {"namespace": "theirs"},
        {"namespace": None},
        {"id": "job_1"},
        {"id": None},
        {"id": ["a", "list"]},
    ],
    ids=str,
)
async def test_a_message_of_another_kind_is_dropped(
    queue: Queue, odd: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with queue() as jobs:
        job = (await jobs.enqueue("double", 21)).job
        await run_message(jobs, OURS, {**message(job), **odd})
        await run_message(jobs, OURS, {})
        assert (await jobs.find(job.id)).status is JobStatus.PENDING
    told = [one.levelno for one in caplog.records if "of another namespace" in one.message]
    assert told == [logging.WARNING] * 2


@pytest.mark.anyio
async def test_an_unknown_job_is_dropped(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    gone = new_job_id()
    async with queue() as jobs:
        await run_message(jobs, OURS, {"namespace": OURS, "id": gone})
    assert sum(gone in one.message for one in caplog.records) == 1


@pytest.mark.anyio
async def test_an_unavailable_store_raises_no_error_in_the_engine(
    queue: Queue, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = FaultyStore(store)
    async with queue(faulty) as jobs:
        job = (await jobs.enqueue("double", 21)).job
        faulty.faults = Faults(before=1)
        await run_message(jobs, OURS, message(job))
        faulty.faults = Faults()
        assert "will be sent again" in caplog.text
        await run_message(jobs, OURS, message(job))
        assert (await jobs.find(job.id)).result == 42


class Client(BlockingClientDispatcher[Any]):
    """A dispatcher for any engine."""

    def send_all(self, jobs: Sequence[Job]) -> None: ...


def test_a_message_only_holds_a_namespace_and_a_job_id() -> None:
    job = sample_job(payload_json=b'"secret"', user_id="ada")
    assert Client().message_of(job) == {"namespace": "asyncjobs", "id": job.id}


# engines without an event loop


def test_a_thread_opens_the_queue_at_the_first_message(queue: Queue) -> None:
    jobs = queue()
    made = anyio.run(enqueued, queue(), 3)
    carriers = [
        threading.Thread(target=run_message_from_thread, args=(jobs, OURS, message(job)))
        for job in made
    ]
    for one in carriers:
        one.start()
    for one in carriers:
        one.join()
    portal = portal_for(jobs)
    assert [portal.call(jobs.find, job.id).result for job in made] == [0, 2, 4]
    portal.close()


def test_a_queue_that_cannot_be_opened_in_a_thread_is_opened_later(
    queue: Queue, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shut = Shut(store)
    jobs = queue(shut)
    run_message_from_thread(jobs, OURS, {"namespace": OURS, "id": new_job_id()})
    assert "could not be opened" in caplog.text
    shut.shut = False
    [job] = anyio.run(enqueued, queue(), 1)
    run_message_from_thread(jobs, OURS, message(job))
    assert portal_for(jobs).call(jobs.find, job.id).result == 0
    portal_for(jobs).close()


def test_a_log_filter_that_raises_costs_one_log_line(queue: Queue, broken_filter: Any) -> None:
    jobs = queue()
    [job] = anyio.run(enqueued, queue(), 1)
    run_message_from_thread(jobs, OURS, {"namespace": "another", "id": job.id})
    assert broken_filter.asked >= 1  # the store may log as well
    run_message_from_thread(jobs, OURS, message(job))
    assert portal_for(jobs).call(jobs.find, job.id).result == 0
    portal_for(jobs).close()


# engines with an event loop


def test_the_queue_lives_in_the_loop_from_the_first_message_to_the_close(queue: Queue) -> None:
    jobs = queue()
    made = anyio.run(enqueued, queue(), 9)
    home = AsyncMessageRunner(jobs, OURS)

    async def work() -> None:
        await home.close()  # as a worker without jobs does
        await asyncio.gather(*(home.run(message(job)) for job in made))
        assert [(await jobs.find(job.id)).result for job in made] == [2 * n for n in range(9)]
        await home.close()
        assert not jobs.is_open

    asyncio.run(work())


def test_the_end_of_the_loop_closes_the_queue(queue: Queue) -> None:
    jobs = queue()
    home = AsyncMessageRunner(jobs, OURS)
    for _ in range(2):
        asyncio.run(opened(home.open, jobs))
        assert not jobs.is_open


@pytest.mark.parametrize("cancellations", [1, 2])
def test_a_cancelled_message_releases_its_job_without_a_failure(
    queue: Queue, cancellations: int
) -> None:
    async def work() -> None:
        async with queue() as jobs:
            begun = asyncio.Event()

            @jobs.handler("long")
            async def long(_: None, _job: JobContext) -> None:
                begun.set()
                await asyncio.sleep(600)

            job = (await jobs.enqueue("long")).job
            running = asyncio.create_task(AsyncMessageRunner(jobs, OURS).run(message(job)))
            await begun.wait()
            for _ in range(cancellations):
                running.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await running
            async for state in jobs.subscribe(job.id):
                if state.status is JobStatus.PENDING:
                    break
            assert (await jobs.find(job.id)).failures == job.failures

    asyncio.run(work())


def test_a_queue_that_the_application_opened_stays_open(queue: Queue) -> None:
    async def work() -> None:
        async with queue() as jobs:
            home = AsyncMessageRunner(jobs, OURS)
            job = (await jobs.enqueue("double", 21)).job
            await home.run(message(job))
            await home.close()
            assert (await jobs.find(job.id)).result == 42

    asyncio.run(work())


def test_a_queue_that_cannot_be_opened_in_a_loop_is_opened_later(
    queue: Queue, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shut = Shut(store)
    jobs = queue(shut)
    home = AsyncMessageRunner(jobs, OURS)

    async def work() -> None:
        nobody: dict[str, object] = {"namespace": OURS, "id": new_job_id()}
        await asyncio.gather(home.run(nobody), home.run(nobody))
        with pytest.raises(StoreUnavailable):
            await home.open()
        shut.shut = False
        await home.open()
        job = (await jobs.enqueue("double", 21)).job
        await home.run(message(job))
        assert (await jobs.find(job.id)).result == 42
        await home.close()

    asyncio.run(work())
    assert caplog.text.count("could not be opened") == 2


def test_a_cancelled_open_does_not_affect_other_callers(queue: Queue) -> None:
    jobs = queue()
    home = AsyncMessageRunner(jobs, OURS)

    async def work() -> None:
        impatient, patient = (asyncio.create_task(home.open()) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        assert impatient.cancelled() or impatient.done()
        assert jobs.is_open
        await home.close()

    asyncio.run(work())


async def enqueued(jobs: AsyncJobs, count: int) -> list[Job]:
    async with jobs:
        return [(await jobs.enqueue("double", number)).job for number in range(count)]


async def opened(open_it: Callable[[], Coroutine[Any, Any, None]], jobs: AsyncJobs) -> None:
    await open_it()
    assert jobs.is_open

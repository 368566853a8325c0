"""Metrics: what each one counts, and its labels."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobFailed, Policy, Retry, Settings
from asyncjobs.otel import names
from asyncjobs.protocols import Listing
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, ManualClock
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]
Make = Callable[..., AsyncJobs]


async def test_jobs_are_counted_by_type_queue_and_outcome(jobs: AsyncJobs, recorded: Any) -> None:
    again = Retry(max_attempts=2, initial_delay=timedelta(0))

    @jobs.handler("work", policy=Policy(queue="slow", retry=again))
    async def work(number: int, job: JobContext) -> None:
        if number == 1 and job.attempt == 1:
            raise ValueError("once more")
        if number == 2:
            raise JobFailed("No.", code=f"code_of_{number}")

    kind = jobs.external("elsewhere", payload=int, result=int)
    async with jobs:
        for number in range(3):
            await jobs.wait((await jobs.enqueue(work, number)).id, timeout=30)
        await jobs.cancel((await jobs.enqueue(kind, 1)).id)
    of_work = {"asyncjobs_job_type": "work", "messaging_destination_name": "slow"}
    assert recorded.total(names.SENT, **of_work) == 3
    assert recorded.total(names.CONSUMED, **of_work) == 4
    assert recorded.total(names.PROCESSING, **of_work) == 4
    assert recorded.total(names.WAIT, **of_work) == 4
    assert recorded.total(names.PROCESSING, error_type="ValueError") == 1
    assert recorded.total(names.ENDED, asyncjobs_job_outcome="completed", **of_work) == 2
    assert recorded.total(names.ENDED, error_type="job_failed", **of_work) == 1
    assert recorded.total(names.ENDED, asyncjobs_job_type="elsewhere") == 1
    assert recorded.total(names.ENDED, asyncjobs_job_outcome="cancelled") == 1
    assert recorded.total(names.RUNNING) == 0


async def test_the_jobs_of_a_batch_are_counted_and_not_the_batch(
    jobs: AsyncJobs, recorded: Any
) -> None:
    @jobs.handler("work")
    async def work(_number: int, _job: JobContext) -> None:
        return None

    async with jobs:
        batch = await jobs.enqueue_batch(work, [1, 2])
        await batch.wait(timeout=30)
    assert recorded.total(names.SENT) == recorded.total(names.CONSUMED) == 2
    assert recorded.total(names.ENDED) == recorded.total(names.WAIT) == 2


async def test_running_handlers_are_counted_while_they_run(jobs: AsyncJobs, recorded: Any) -> None:
    @jobs.handler("long")
    async def long(_payload: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    async with jobs:
        made = [await jobs.enqueue(long, None) for _ in range(2)]
        await until(lambda: recorded.total(names.RUNNING, asyncjobs_job_type="long") == 2)
        for job in made:
            await jobs.cancel(job.id)
            await jobs.wait(job.id, timeout=30)
        assert recorded.total(names.RUNNING) == 0
    assert recorded.total(names.PROCESSING, error_type="cancel") == 2


async def test_a_missed_deadline_is_counted_by_the_process_that_records_it(
    make: Make, recorded: Any
) -> None:
    clock = ManualClock()
    jobs = make(clock=clock)
    kind = jobs.external("late", payload=int, result=int)
    async with jobs:
        job = await jobs.enqueue(kind, 1)
        clock.advance(timedelta(days=2))
        await jobs.find(job.id)
    assert recorded.total(names.ENDED, error_type="deadline_exceeded") == 1


async def test_a_forgotten_job_is_not_counted_again(make: Make, recorded: Any) -> None:
    clock, forgotten = ManualClock(), list[object]()
    limits = Policy(retention=timedelta(hours=1))
    jobs = make(clock=clock, policy=limits, settings=Settings(sweep_interval=0.01))
    jobs.on("forgotten", forgotten.append)
    kind = jobs.external("late", payload=int, result=int)
    async with jobs:
        await jobs.fail((await jobs.enqueue(kind, 1)).id, "No.")
        clock.advance(timedelta(hours=1))
        await until(lambda: bool(forgotten))
    assert recorded.total(names.SENT) == 1
    assert recorded.total(names.ENDED) == 1
    assert recorded.total(names.LOST) == 0


@pytest.mark.parametrize(("deliveries", "ended"), [(1, 1), (3, 0)])
async def test_a_lost_worker_is_counted_by_the_process_that_finds_it(
    make: Make, store: Any, recorded: Any, deliveries: int, ended: int
) -> None:
    clock, lost = ManualClock(), FaultyStore(store)
    broken, started = AsyncJobs(lost, clock=clock), anyio.Event()
    jobs = make(clock=clock, dispatcher="worker")
    limits = Policy(max_deliveries=deliveries, timeout=None)

    @broken.handler("work", policy=limits)
    async def work(_payload: None, _job: JobContext) -> None:
        started.set()
        await anyio.sleep_forever()

    @jobs.handler("work", policy=limits)
    async def same(_payload: None, _job: JobContext) -> None: ...

    async with broken, jobs:
        job = await broken.enqueue(work, None)
        await started.wait()
        lost.faults = Faults(before=1)  # it can neither renew nor notice
        clock.advance(timedelta(minutes=1))
        await jobs.find(job.id)
        await until(lambda: recorded.total(names.LOST, asyncjobs_job_type="work") == 1)
        assert recorded.total(names.ENDED, error_type="worker_lost") == ended
        lost.faults = Faults()


async def test_the_age_of_the_oldest_waiting_job_is_exported_by_queue(
    make: Make, recorded: Any
) -> None:
    clock = ManualClock()
    jobs = make(clock=clock, dispatcher="worker")

    @jobs.handler("work", policy=Policy(queue="slow"))
    async def work(_payload: None, _job: JobContext) -> None: ...

    @jobs.handler("other")
    async def other(_payload: None, _job: JobContext) -> None: ...

    def age(queue: str) -> float:
        return float(recorded.total(names.OLDEST, messaging_destination_name=queue))

    async with jobs:
        await jobs.enqueue(work, None)
        clock.advance(timedelta(seconds=40))
        await jobs.enqueue(work, None)
        waits = {"slow": timedelta(seconds=40), "default": timedelta(0)}
        assert await jobs.oldest_waiting() == waits
        await until(lambda: age("slow") == 40)
        assert age("default") == 0
        assert len(recorded.points(names.OLDEST)) == 2
    assert recorded.points(names.OLDEST) == {}


async def test_counters_of_registered_types_are_zero_when_the_queue_opens(
    jobs: AsyncJobs, recorded: Any
) -> None:
    @jobs.handler("work", policy=Policy(queue="slow"))
    async def work(_payload: None, _job: JobContext) -> None: ...

    jobs.external("elsewhere", payload=int, result=int)
    labels = {"asyncjobs_job_type": "work", "messaging_destination_name": "slow"}
    async with jobs:
        await until(lambda: recorded.points(names.LOST))
        ended = recorded.points(names.ENDED)
        for metric in (names.SENT, names.CONSUMED, names.LOST, names.ENDED):
            assert {dict(point)[names.JOB_TYPE] for point in recorded.points(metric)} == {
                "work",
                "elsewhere",
            }
            assert recorded.total(metric, **labels) == 0
        codes = {dict(point).get(names.ERROR_TYPE) for point in ended}
        assert codes == {None, *names.CODES, names.APPLICATION_CODE}
        assert len(ended) == 2 * (2 + len(names.CODES) + 1)

        @jobs.handler("late")
        async def late(_payload: None, _job: JobContext) -> None: ...

        def late_is_there() -> bool:
            return "late" in {dict(point)[names.JOB_TYPE] for point in recorded.points(names.LOST)}

        await until(late_is_there)
        await jobs.wait((await jobs.enqueue(work, None)).id)
        await until(lambda: recorded.total(names.ENDED) == 1)
    assert len(recorded.points(names.ENDED)) == 3 * (2 + len(names.CODES) + 1)


async def test_error_types_after_the_first_hundred_share_a_label(
    jobs: AsyncJobs, recorded: Any
) -> None:
    @jobs.handler("fails")
    async def fails(number: int, _job: JobContext) -> None:
        raise type(f"Error{number}", (Exception,), {})

    async with jobs:
        made = [await jobs.enqueue(fails, number) for number in range(120)]
        for job in made:
            await jobs.wait(job.id)
    assert len(recorded.points(names.PROCESSING)) == 101
    assert recorded.total(names.PROCESSING, error_type="_OTHER") == 20


class Mute(MemoryStore):
    """A store that does not report how long jobs wait."""

    powers = MemoryStore.powers - {Listing}


async def test_an_unavailable_store_exports_no_age(make: Make, store: Any, recorded: Any) -> None:
    away = FaultyStore(store)
    jobs = make(store=away)

    @jobs.handler("work")
    async def work(_payload: None, _job: JobContext) -> None: ...

    async with jobs:
        await until(lambda: recorded.points(names.OLDEST))
        away.faults = Faults(before=1, only=["first_due"])
        await until(lambda: not recorded.points(names.OLDEST))


@pytest.mark.own_store
async def test_a_store_without_the_power_exports_no_age(make: Make, recorded: Any) -> None:
    jobs = make(store=Mute())

    @jobs.handler("work")
    async def work(_payload: None, _job: JobContext) -> None: ...

    async with jobs:
        assert await jobs.oldest_waiting() == {}
        await until(lambda: recorded.points(names.WATCHERS))
        assert recorded.points(names.OLDEST) == {}


async def test_the_watchers_of_attempts_are_not_counted(jobs: AsyncJobs, recorded: Any) -> None:
    go_on = anyio.Event()

    @jobs.handler("work")
    async def work(_payload: None, _job: JobContext) -> None:
        await go_on.wait()

    async with jobs:
        job = await jobs.enqueue(work, None)
        await until(lambda: recorded.total(names.RUNNING) == 1)
        assert recorded.total(names.WATCHERS) == 0
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(jobs.wait, job.id)
            await until(lambda: recorded.total(names.WATCHERS) == 2)
            go_on.set()
        assert recorded.total(names.WATCHERS) == 0
    assert recorded.points(names.WATCHERS) == {}


async def test_queues_of_one_process_are_exported_together(
    make: Make, new_url: Callable[[], str], recorded: Any
) -> None:
    clock = ManualClock()
    both = [make(store=new_url(), clock=clock, dispatcher="worker") for _ in range(2)]
    for jobs in both:

        @jobs.handler("work")
        async def work(_payload: None, _job: JobContext) -> None: ...

    async with both[0], both[1], anyio.create_task_group() as tasks:
        for jobs, seconds in zip(both, (20, 10), strict=True):
            job = await jobs.enqueue("work", None)
            clock.advance(timedelta(seconds=seconds))
            tasks.start_soon(jobs.wait, job.id)
        await until(lambda: recorded.total(names.WATCHERS) == 2)
        await until(lambda: recorded.total(names.OLDEST) == 30)
        assert len(recorded.points(names.OLDEST)) == 1
        tasks.cancel_scope.cancel()


async def test_unregistered_types_and_queues_share_a_label(
    make: Make, store: Any, recorded: Any
) -> None:
    clock = ManualClock()
    strange = AsyncJobs(store, clock=clock)
    jobs = make(clock=clock)
    made = [
        strange.external(
            f"type{number}", payload=int, result=int, policy=Policy(queue=f"q{number}")
        )
        for number in range(3)
    ]
    async with strange, jobs:
        for kind in made:
            job = await strange.enqueue(kind, 1, user_id="ada")
            await jobs.cancel(job.id)
    [labels] = recorded.points(names.ENDED)
    assert dict(labels) == {
        "messaging.system": "asyncjobs",
        "asyncjobs.job.type": "_OTHER",
        "messaging.destination.name": "_OTHER",
        "asyncjobs.job.outcome": "cancelled",
    }

"""When jobs start, and which jobs never start."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobContext, JobStatus, Policy, Settings
from asyncjobs.core import lifecycle
from asyncjobs.core.job import JobId, Lease, suspects_lane
from asyncjobs.core.lifecycle import DEADLINE_EXCEEDED
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.protocols import ChangeNotices, Store
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import FaultyStore, sample_job
from tests.queues import Make, finished, settled
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

NO_POLLING = Settings(
    poll_interval=timedelta(hours=1),
    sweep_interval=timedelta(hours=1),
    progress_interval=timedelta(seconds=0.01),
)


#: A job that was taken in vain would not be due again by itself.
NO_REDELIVERY = Settings(poll_interval=0.05, redelivery=3600, lease=3600)


async def test_a_delayed_job_starts_when_it_is_due_and_not_at_the_next_poll(make: Make) -> None:
    jobs = make(settings=NO_POLLING)

    @jobs.handler("when")
    async def when(_none: None, _job: JobContext) -> None: ...

    async with jobs:
        waiting = [
            await jobs.enqueue(when, None, options=EnqueueOptions(run_at=seconds))
            for seconds in (0.15, 0.05, 0.1)
        ]
        for handle in waiting:
            done = await settled(jobs, handle.id)  # long before the next poll
            assert done.started_at is not None
            assert done.started_at >= handle.job.run_at


class Told(MemoryStore):
    """Sends a change notice when the test sets an event."""

    powers = MemoryStore.powers | {ChangeNotices}

    def __init__(self) -> None:
        super().__init__()
        self.tell, self._told = anyio.create_memory_object_stream[None](1)

    async def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        async with self._told:
            async for _ in self._told:
                yield ()


async def test_a_job_from_a_fast_clock_does_not_wait_for_the_next_poll() -> None:
    store, begun = Told(), anyio.Event()
    jobs = AsyncJobs(store, settings=NO_POLLING)

    @jobs.handler("small")
    async def small(_none: None, _job: JobContext) -> None:
        begun.set()

    async with store.tell, jobs:
        await anyio.wait_all_tasks_blocked()
        ahead = jobs.clock.now() + timedelta(seconds=0.03)
        await store.insert([sample_job(type="small", payload_json=b"null", created_at=ahead)])
        await store.tell.send(None)
        with anyio.fail_after(60):
            await begun.wait()


async def test_a_waiting_job_past_its_deadline_fails_without_a_read(
    make: Make, beside: Any
) -> None:
    jobs = make()

    @jobs.handler("late")
    async def late(_none: None, _job: JobContext) -> None: ...

    now = jobs.clock.now()
    past = {"created_at": now - timedelta(hours=1), "deadline": now - timedelta(minutes=1)}
    missed = [sample_job(type="late", **past), sample_job(type="of another release", **past)]
    await beside.insert(missed)
    ids = [job.id for job in missed]
    async with jobs:
        for job_id in ids:
            assert (await settled(jobs, job_id)).error == DEADLINE_EXCEEDED
    assert [job.error for job in await beside.get(ids)] == [DEADLINE_EXCEEDED] * 2


async def test_a_job_that_misses_its_deadline_before_its_start_fails(
    make: Make, beside: Any
) -> None:
    dispatcher = LocalDispatcher()
    jobs = make(dispatcher=dispatcher, settings=NO_POLLING)

    @jobs.handler("late")
    async def late(_none: None, _job: JobContext) -> None: ...

    now = jobs.clock.now()
    job = sample_job(type="late", created_at=now - timedelta(hours=1), deadline=now)
    async with jobs:
        await beside.insert([job])
        assert dispatcher.offer(job)
        await until(lambda: is_terminal(beside, job))
    [left] = await beside.get([job.id])
    assert left.error == DEADLINE_EXCEEDED


async def is_terminal(store: Store, job: Job) -> bool:
    [found] = await store.get([job.id])
    return found is not None and found.status.terminal


async def test_many_concurrent_submissions_all_start(make: Make) -> None:
    jobs = make(settings=Settings(), dispatcher=LocalDispatcher(concurrency=2))

    @jobs.handler("quick")
    async def quick(_none: None, _job: JobContext) -> None: ...

    ended: list[JobStatus] = []

    async def submit() -> None:
        ended.append((await finished(jobs, quick)).status)

    async with jobs, anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(submit)
    assert ended == [JobStatus.COMPLETED] * 50


async def test_a_taken_job_without_room_is_put_back(make: Make, beside: Any) -> None:
    dispatcher = Full(concurrency=1)
    jobs = make(dispatcher=dispatcher, settings=NO_POLLING)

    @jobs.handler("export")
    async def export(_payload: object, _job: JobContext) -> None: ...

    job = sample_job(created_at=jobs.clock.now())
    await beside.insert([job])
    async with jobs:
        done = await jobs.wait(job.id, timeout=60)
    # Put back once, invisibly to clients: one write more than usual.
    assert (done.status, done.attempt, done.revision) == (JobStatus.COMPLETED, 1, 4)


class Full(LocalDispatcher):
    """Loses its last place between the check and the offer."""

    def __init__(self, concurrency: int) -> None:
        super().__init__(concurrency)
        self.refused = False

    def offer(self, job: Job) -> bool:
        if self.refused:
            return super().offer(job)
        self.refused = True
        return False


class Asked(FaultyStore):
    """Records from which lanes jobs are taken, and the limit of each call."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked: list[tuple[tuple[str, ...], int]] = []

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        self.asked.append((tuple(lanes), limit))
        return await super().take(lanes, now=now, until=until, limit=limit)


@pytest.mark.parametrize(("first", "asked"), [(0, [4, 4]), (1, [4, 3]), (3, [4, 1]), (4, [4])])
async def test_a_later_lane_uses_the_room_left_by_an_earlier_lane(
    make: Make, store: Any, beside: Any, first: int, asked: list[int]
) -> None:
    noting = Asked(store)
    jobs = make(store=noting, settings=NO_POLLING)

    @jobs.handler("early", policy=Policy(queue="early"))
    async def early(_payload: object, _job: JobContext) -> None: ...

    @jobs.handler("later", policy=Policy(queue="later"))
    async def later(_payload: object, _job: JobContext) -> None: ...

    now = jobs.clock.now()
    waiting = [
        sample_job(type=name, queue=name, created_at=now)
        for name, count in (("early", first), ("later", 6))
        for _ in range(count)
    ]
    await beside.insert(waiting)
    async with jobs.as_worker(concurrency=2, queues=["early", "later"]):
        for job in waiting:
            await settled(jobs, job.id)
    looks = [limit for lanes, limit in noting.asked if lanes in {("early",), ("later",)}]
    assert looks[: len(asked)] == asked
    served = [lanes for lanes, _ in noting.asked if lanes in {("early",), ("later",)}]
    assert served[: len(asked)] == [("early",), ("later",)][: len(asked)]


async def test_a_process_runs_one_suspect_at_a_time_and_other_jobs_beside_it(
    make: Make, beside: Any
) -> None:
    jobs = make(settings=NO_POLLING)
    running: set[str] = set()
    seen: list[int] = []
    go_on = anyio.Event()

    @jobs.handler("suspect")
    async def suspect(_payload: object, job: JobContext) -> None:
        running.add(job.id)
        seen.append(len(running))
        await go_on.wait()
        running.remove(job.id)

    @jobs.handler("harmless")
    async def harmless(_none: None, _job: JobContext) -> None: ...

    now, lane = jobs.clock.now(), suspects_lane("default")
    suspects = [
        sample_job(type="suspect", created_at=now, max_deliveries=2).changed(losses=1, lane=lane)
        for _ in range(3)
    ]
    await beside.insert(suspects)
    async with jobs:
        await until(lambda: running)
        for _ in range(3):
            assert (await finished(jobs, harmless)).status is JobStatus.COMPLETED
        assert seen == [1]
        go_on.set()
        for job in suspects:
            await settled(jobs, job.id)
    assert seen == [1, 1, 1]


async def test_a_suspect_of_this_process_does_not_wait_for_the_next_poll(
    make: Make, beside: Any
) -> None:
    jobs = make(settings=NO_POLLING)

    @jobs.handler("losing")
    async def losing(_payload: object, job: JobContext) -> int:
        return job.attempt

    async with jobs:
        assert (await finished(jobs, losing)).result == 1  # it has looked for suspects
        now = jobs.clock.now()
        job = sample_job(type="losing", created_at=now - timedelta(minutes=1), max_deliveries=2)
        lapsed = Lease(worker="dead:1", token="t", until=now)
        begun = lifecycle.start(job, now - timedelta(minutes=1), lapsed)
        await beside.insert([begun])
        assert lifecycle.is_suspect(await jobs.find(job.id))
        assert (await settled(jobs, job.id)).result == 2


async def test_a_job_lost_elsewhere_while_it_waits_here_runs_alone(make: Make, beside: Any) -> None:
    dispatcher = LocalDispatcher(2)
    jobs = make(settings=NO_POLLING, dispatcher=dispatcher)
    running: set[str] = set()
    go_on = anyio.Event()

    @jobs.handler("suspect")
    async def suspect(_payload: object, job: JobContext) -> int:
        running.add(job.id)
        await go_on.wait()
        return len(running)

    now = jobs.clock.now()
    first, waiting = (
        sample_job(type="suspect", created_at=now - timedelta(minutes=1), max_deliveries=2)
        for _ in range(2)
    )
    await beside.insert([first.changed(losses=1, lane=suspects_lane("default"))])
    async with jobs:
        await until(lambda: running)
        lapsed = Lease(worker="dead:1", token="t", until=now)
        begun = lifecycle.start(waiting, now - timedelta(minutes=1), lapsed)
        await beside.insert([begun])
        assert dispatcher.offer(waiting)  # its state when this process took it
        await until(lambda: dispatcher.room == 3)
        assert running == {first.id}
        go_on.set()
        assert (await settled(jobs, waiting.id)).attempt == 2


async def test_a_queue_without_handlers_takes_nothing(make: Make, store: Any, beside: Any) -> None:
    counted = FaultyStore(store)
    jobs = make(store=counted)
    job = sample_job(created_at=jobs.clock.now())
    await beside.insert([job])
    async with jobs:
        await until(lambda: [call.method for call in counted.calls].count("take") > 2)
    assert await beside.get([job.id]) == [job]
    assert all(call.method != "replace" for call in counted.calls)


async def test_a_job_without_a_handler_here_reaches_the_worker_that_has_one(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a rolling deploy, if the worker of the old release polls first."""
    old, new = make(settings=NO_REDELIVERY), make(settings=NO_REDELIVERY)
    for jobs in (old, new):

        @jobs.handler("known")
        async def known(_none: None, _job: JobContext) -> None: ...

    @new.handler("new")
    async def added(_none: None, _job: JobContext) -> str:
        return "done"

    async with new.open(run_handlers=False), old:
        job = await new.enqueue(added, None)
        await until(lambda: "No handler for type 'new' here" in caplog.text)
        await new.start_handlers()
        assert (await new.wait(job.id)).result == "done"
        assert (await finished(old, "known")).status is JobStatus.COMPLETED
    assert caplog.text.count("No handler for type 'new' here") == 1

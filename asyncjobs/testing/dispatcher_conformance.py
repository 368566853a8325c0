"""The conformance suites of dispatchers, and the workers that run their jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Detail, Job, JobId, JobStatus
from asyncjobs.core.submission import EnqueueOptions
from asyncjobs.protocols import Dispatcher, Store
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.waiting import running_asyncio_loop
from asyncjobs.settings import Settings
from asyncjobs.testing.dispatcher_handlers import STEPS, began, register, release
from asyncjobs.testing.samples import sample_job, sample_submission

#: Timing with which lost jobs come up again soon. Workers use it for their queues, too.
BRISK = Settings(
    lease=timedelta(seconds=3),
    redelivery=timedelta(seconds=1),
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.1),
    progress_interval=timedelta(seconds=0.01),
    grace=timedelta(seconds=1),
)


class WorkerPool:
    """A store, a dispatcher, and the workers that run its jobs.

    The class itself suits dispatchers that run jobs in this process. For an engine, override
    `working`. `slots` is how many jobs run at once, `patience` how many seconds a test waits for a
    condition. The tests send `many` jobs at once, and `some` to let time pass: lower them for an
    engine that starts a process for each.
    """

    slots = 4
    patience = 60.0
    many = 200
    some = 20

    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self.store = store
        self.dispatcher = dispatcher

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[AsyncJobs]:
        """Open a queue with the handlers of the tests, and let the workers work."""
        jobs = AsyncJobs(self.store, dispatcher=self.dispatcher, settings=BRISK)
        register(jobs)
        async with jobs, self.working(jobs):
            yield jobs

    @asynccontextmanager
    async def working(self, jobs: AsyncJobs) -> AsyncGenerator[None]:  # noqa: ARG002  # to override
        """Run delivered jobs inside the block.

        `jobs` is open in this process. Workers in other processes open their own queue on the same
        store, with `BRISK` settings and a dispatcher of the same kind, on which they `register` the
        handlers of `asyncjobs.testing.dispatcher_handlers`.
        """
        yield

    async def run(self, jobs: AsyncJobs, job_id: JobId) -> None:
        """Run a job in an open queue as a worker does that was given its id.

        Override it if the worker awaits more than `AsyncJobs.run`.
        """
        await jobs.run(job_id)


class KillableWorkerPool(Protocol):
    """A pool whose workers are separate processes, so that they can be killed."""

    @property
    def patience(self) -> float: ...

    def opened(self) -> AbstractAsyncContextManager[AsyncJobs]: ...

    async def kill(self) -> None:
        """End all workers in the middle of their work, as SIGKILL does, and start others."""
        ...


SOME = 20


@pytest.mark.anyio
class DispatcherConformance:
    """The contract of `asyncjobs.protocols.Dispatcher`, as tests.

    Override the fixture `workers`: it returns a new `WorkerPool`, on an empty store, for each test.
    """

    @pytest.fixture
    def workers(self) -> WorkerPool:
        raise NotImplementedError("Override the fixture `workers`.")

    # delivery

    async def test_a_job_is_delivered_and_brings_its_result(self, workers: WorkerPool) -> None:
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("echo", {"a": [1, None]})).job
            done = await ended(jobs, job, workers)
        assert (done.status, done.result) == (JobStatus.COMPLETED, {"a": [1, None]})
        assert done.attempt == 1

    async def test_many_jobs_bring_their_results_and_progress(self, workers: WorkerPool) -> None:
        submitted: dict[int, Job] = {}
        async with workers.opened() as jobs:

            async def submit(number: int) -> None:
                submitted[number] = (await jobs.enqueue("steps", number)).job

            async with anyio.create_task_group() as tasks:
                for number in range(workers.many):
                    tasks.start_soon(submit, number)
            done = {number: await ended(jobs, job, workers) for number, job in submitted.items()}
        assert {number: job.result for number, job in done.items()} == {
            number: 2 * number for number in range(workers.many)
        }
        whole = Detail(current=STEPS, total=STEPS, unit="steps")
        assert [job.detail for job in done.values()] == [whole] * workers.many
        assert {job.attempt for job in done.values()} == {1}

    async def test_progress_shows_while_a_job_runs(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            with anyio.fail_after(workers.patience):
                async for seen in jobs.subscribe(job.id):
                    if seen.progress == 40:
                        break
            assert (await jobs.find(job.id)).status is JobStatus.PROCESSING
            release(path)
            assert (await ended(jobs, job, workers)).result == 1

    async def test_output_is_read_while_a_job_runs(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            items = (await jobs.enqueue("emit", path)).output()
            with anyio.fail_after(workers.patience):
                first = [(await anext(items)).value for _ in range(STEPS)]
                release(path)
                rest = [item.value async for item in items]
        assert first == [[1, number] for number in range(STEPS)]
        assert rest == [[1, STEPS]]

    async def test_dispatching_does_not_wait_for_the_job(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            submission = sample_submission(
                type="hold",
                payload_json=json.dumps(str(path)).encode(),
                delivery=workers.dispatcher.delivery,
                created_at=jobs.clock.now(),
            )
            # Not enqueued: that waits for a dispatcher only up to `Settings.dispatch_timeout`.
            waiting = lifecycle.submit(submission, hold=jobs.settings.redelivery)
            [job] = await workers.store.insert([waiting])
            with anyio.fail_after(workers.patience):
                await workers.dispatcher.dispatch([job])
            release(path)
            await ended(jobs, job, workers)

    async def test_a_delayed_job_is_delivered_when_it_is_due(self, workers: WorkerPool) -> None:
        async with workers.opened() as jobs:
            later = EnqueueOptions(run_at=timedelta(seconds=0.3))
            job = (await jobs.enqueue("echo", 1, options=later)).job
            done = await ended(jobs, job, workers)
        assert done.started_at is not None
        assert done.started_at >= job.run_at

    async def test_what_was_enqueued_before_a_restart_is_delivered_after_it(
        self, workers: WorkerPool
    ) -> None:
        async with workers.opened() as jobs:
            later = EnqueueOptions(run_at=timedelta(seconds=0.3))
            job = (await jobs.enqueue("echo", 1, options=later)).job
        async with workers.opened() as jobs:
            assert (await ended(jobs, job, workers)).result == 1
            assert (await ended(jobs, (await jobs.enqueue("echo", 2)).job, workers)).result == 2

    # repeated, late and lost deliveries

    async def test_a_job_delivered_twice_runs_once(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await workers.dispatcher.dispatch([job])
            await until(lambda: began(path) > 0, workers.patience)
            await workers.dispatcher.dispatch([job, job])
            if workers.slots > 1:
                await others_pass(jobs, workers)
            release(path)
            done = await ended(jobs, job, workers)
            await others_pass(jobs, workers)
        assert (done.attempt, began(path)) == (1, 1)

    async def test_what_is_delivered_after_its_end_stays_as_it_is(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        release(path)
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            done = await ended(jobs, job, workers)
            await workers.dispatcher.dispatch([job])
            await others_pass(jobs, workers)
            assert await jobs.get(job.id) == done
        assert began(path) == 1

    async def test_what_is_delivered_after_it_was_forgotten_harms_nobody(
        self, workers: WorkerPool
    ) -> None:
        async with workers.opened() as jobs:
            gone = sample_job(
                type="echo", delivery=workers.dispatcher.delivery, created_at=jobs.clock.now()
            )
            await workers.dispatcher.dispatch([gone] * workers.some)
            await others_pass(jobs, workers)
            assert await jobs.get(gone.id) is None

    async def test_a_job_whose_delivery_was_lost_comes_up_again(self, workers: WorkerPool) -> None:
        async with workers.opened() as jobs:
            submission = sample_submission(
                type="echo",
                payload_json=b'"again"',
                delivery=workers.dispatcher.delivery,
                created_at=jobs.clock.now(),
            )
            [job] = await workers.store.insert([lifecycle.submit(submission)])
            assert (await ended(jobs, job, workers)).result == "again"

    async def test_a_place_that_was_kept_and_not_used_is_given_back(
        self, workers: WorkerPool
    ) -> None:
        granted: list[int] = []
        async with workers.opened() as jobs:
            for _ in range(workers.many):
                granted.append(workers.dispatcher.reserve(1))
                workers.dispatcher.release(granted[-1])
            await others_pass(jobs, workers)
        assert granted == granted[:1] * workers.many

    # attempts are managed by the library

    async def test_a_failed_job_is_not_run_again_by_the_engine(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            failed = await ended(jobs, (await jobs.enqueue("refuse", path)).job, workers)
            await others_pass(jobs, workers)
            assert await jobs.get(failed.id) == failed
        assert failed.error is not None
        assert (failed.error.code, began(path)) == ("refused", 1)

    async def test_a_retry_is_delivered(self, workers: WorkerPool, tmp_path: Path) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            done = await ended(jobs, (await jobs.enqueue("second_time", path)).job, workers)
        assert (done.status, done.result, began(path)) == (JobStatus.COMPLETED, 2, 2)

    async def test_a_job_whose_run_is_cancelled_is_given_back(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        """Engines cancel what they run when they stop; on asyncio by the task itself."""
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            submission = sample_submission(
                type="hold",
                payload_json=json.dumps(str(path)).encode(),
                delivery=workers.dispatcher.delivery,
                created_at=jobs.clock.now(),
            )
            # Held, or it would be delivered as well.
            waiting = lifecycle.submit(submission, hold=timedelta(hours=1))
            [job] = await workers.store.insert([waiting])

            async def it_began() -> None:
                await until(lambda: began(path) == 1, workers.patience)

            with anyio.fail_after(workers.patience):
                await _cancel_when(it_began, lambda: workers.run(jobs, job.id))
            back = await jobs.find(job.id)
            assert (back.releases, back.failures, back.losses) == (1, 0, 0)
            release(path)
            done = await ended(jobs, job, workers)
        assert (done.status, done.result, began(path)) == (JobStatus.COMPLETED, 2, 2)

    # cancellation

    async def test_a_job_that_is_cancelled_while_it_waits_never_runs(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        holding, waiting = tmp_path / "holding", tmp_path / "waiting"
        async with workers.opened() as jobs:
            held = [(await jobs.enqueue("hold", holding)).job for _ in range(workers.slots)]
            await until(lambda: began(holding) == workers.slots, workers.patience)
            job = (await jobs.enqueue("hold", waiting)).job
            cancelled = await jobs.cancel(job.id)
            release(holding)
            for one in held:
                await ended(jobs, one, workers)
            await workers.dispatcher.dispatch([job])
            await others_pass(jobs, workers)
            assert await jobs.get(job.id) == cancelled
        assert (cancelled.status, began(waiting)) == (JobStatus.CANCELLED, 0)

    async def test_a_job_that_is_cancelled_while_it_runs_stops(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) > 0, workers.patience)
            await jobs.cancel(job.id)
            assert (await ended(jobs, job, workers)).status is JobStatus.CANCELLED
            await others_pass(jobs, workers)


@pytest.mark.anyio
class WorkerLossConformance:
    """The rules for killed workers; the fixture `workers` returns a `KillableWorkerPool`."""

    @pytest.fixture
    def workers(self) -> KillableWorkerPool:
        raise NotImplementedError("Override the fixture `workers`.")

    async def test_a_job_whose_worker_is_killed_runs_again(
        self, workers: KillableWorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            await workers.kill()
            await until(lambda: began(path) == 2, workers.patience)
            release(path)
            done = await ended(jobs, job, workers)
        assert (done.status, done.result, done.losses) == (JobStatus.COMPLETED, 2, 1)

    async def test_the_output_of_a_killed_worker_is_kept_and_continued(
        self, workers: KillableWorkerPool, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            handle = await jobs.enqueue("emit", path)
            await until(lambda: began(path) == 1, workers.patience)
            await workers.kill()
            await until(lambda: began(path) == 2, workers.patience)
            release(path)
            with anyio.fail_after(workers.patience):
                items = [item async for item in handle.output()]
        assert [item.value for item in items] == [
            *([1, number] for number in range(STEPS)),
            *([2, number] for number in range(STEPS + 1)),
        ]
        assert [item.epoch for item in items] == [1] * STEPS + [2] * (STEPS + 1)

    async def test_what_waited_for_a_killed_worker_is_run_by_others(
        self, workers: KillableWorkerPool
    ) -> None:
        async with workers.opened() as jobs:
            waiting = [(await jobs.enqueue("steps", number)).job for number in range(SOME)]
            await workers.kill()
            results = [(await ended(jobs, job, workers)).result for job in waiting]
        assert results == [2 * number for number in range(SOME)]


async def ended(jobs: AsyncJobs, job: Job, workers: WorkerPool | KillableWorkerPool) -> Job:
    """Return a job when it has ended, or fail when patience is exhausted."""
    done = await jobs.wait(job.id, timeout=workers.patience)
    assert done.status.terminal, f"{job.type} is {done.status} after {workers.patience} s"
    return done


async def others_pass(jobs: AsyncJobs, workers: WorkerPool) -> None:
    """Run some more jobs; by then all earlier deliveries have had their effect."""
    others = [(await jobs.enqueue("echo", number)).job for number in range(workers.some)]
    for number, job in enumerate(others):
        assert (await ended(jobs, job, workers)).result == number


async def _cancel_when(
    ready: Callable[[], Awaitable[None]], call: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Cancel a call at a given time, by its own task on asyncio; return when it has ended."""
    if running_asyncio_loop() is not None:
        task = asyncio.ensure_future(call())
        await ready()
        task.cancel()
        await asyncio.wait([task])
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await ready()
        tasks.cancel_scope.cancel()


async def until(true: Callable[[], bool], patience: float) -> None:
    """Wait for an effect of other processes."""
    with anyio.fail_after(patience):
        while not true():  # noqa: ASYNC110
            await anyio.sleep(0.01)


@pytest.mark.anyio
class PriorityConformance:
    """The rules for dispatchers whose options have priorities.

    Override the fixture `workers`: it returns a `WorkerPool` whose dispatcher runs jobs of the type
    `urgent` before those of the type `patient`.
    """

    @pytest.fixture
    def workers(self) -> WorkerPool:
        raise NotImplementedError("Override the fixture `workers`.")

    async def test_what_is_more_urgent_begins_before_what_waited_longer(
        self, workers: WorkerPool, tmp_path: Path
    ) -> None:
        busy = [tmp_path / f"busy{slot}" for slot in range(workers.slots)]
        urgent, patient = tmp_path / "urgent", tmp_path / "patient"
        async with workers.opened() as jobs:
            await others_pass(jobs, workers)  # the workers run, and nothing is delivered twice
            submitted = [(await jobs.enqueue("hold", path)).job for path in busy]
            await until(lambda: sum(map(began, busy)) == workers.slots, workers.patience)
            for kind, path in (("patient", patient), ("urgent", urgent), ("patient", patient)):
                submitted.append((await jobs.enqueue(kind, path)).job)
            release(busy[0])  # one slot is free, and the job that gets it holds it
            await until(lambda: began(urgent) + began(patient) > 0, workers.patience)
            assert (began(urgent), began(patient)) == (1, 0)
            for path in (*busy, urgent, patient):
                release(path)
            for job in submitted:
                assert (await ended(jobs, job, workers)).result == 1
        assert began(patient) == 2

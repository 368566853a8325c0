"""Correct dispatchers pass the shared rules; each broken one fails its rule."""

from __future__ import annotations

import asyncio
import inspect
import runpy
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import pytest

from asyncjobs import AsyncJobs, Job
from asyncjobs.core.job import Delivery, JobId, JobStatus
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.errors import UnknownJob
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import (
    DispatcherConformance,
    PriorityConformance,
    WorkerLossConformance,
    WorkerPool,
)

SPOOL = Path(__file__).with_name("spool.py")
SpoolDispatcher: Any = runpy.run_path(str(SPOOL))["SpoolDispatcher"]


class TestLocalDispatcher(DispatcherConformance):
    @pytest.fixture
    def workers(self) -> WorkerPool:
        return WorkerPool(MemoryStore(), LocalDispatcher(concurrency=WorkerPool.slots))


class SpoolWorkers(WorkerPool):
    """Runs jobs in another process, which can be killed."""

    def __init__(self, folder: Path, dispatcher: Any = None) -> None:
        self.url, self.spool = f"sqlite:///{folder / 'jobs.db'}", folder / "spool"
        super().__init__(SqliteStore(folder / "jobs.db"), dispatcher or SpoolDispatcher(self.spool))

    @asynccontextmanager
    async def working(self, jobs: AsyncJobs) -> AsyncGenerator[None]:
        del jobs
        self._start()
        try:
            yield
        finally:
            self._end()

    async def kill(self) -> None:
        self._end()
        self._start()

    def _start(self) -> None:
        command = [sys.executable, str(SPOOL), self.url, str(self.spool)]
        self._process = subprocess.Popen(command)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestWorkersInOtherProcesses(DispatcherConformance, WorkerLossConformance):
    @pytest.fixture
    def workers(self, tmp_path: Path) -> SpoolWorkers:
        return SpoolWorkers(tmp_path)


# An engine in this process, in many broken variants.


class Engine:
    """Passes ids to some tasks."""

    delivery = Delivery.PUSH

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.more = anyio.Condition()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def reserve(self, most: int, /) -> int:
        return most

    def release(self, _places: int, /) -> None:
        return None

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        async with self.more:
            self.jobs.extend(jobs)
            self.more.notify_all()

    async def work(self, workers: WorkerPool, jobs: AsyncJobs) -> None:
        while True:
            async with self.more:
                while not self.jobs:
                    await self.more.wait()
                job = self.next()
            await self.run(job, workers, jobs)

    def next(self) -> Job:
        return self.jobs.pop(0)

    async def run(self, job: Job, workers: WorkerPool, jobs: AsyncJobs) -> None:
        del workers
        await jobs.run(job.id)


class Tasks(WorkerPool):
    """Runs an engine's jobs in tasks."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(MemoryStore(), engine)
        self.engine = engine

    @asynccontextmanager
    async def working(self, jobs: AsyncJobs) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            for _ in range(self.slots):
                tasks.start_soon(self.engine.work, self, jobs)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def run(self, jobs: AsyncJobs, job_id: JobId) -> None:
        await self.engine.run(await jobs.find(job_id), self, jobs)


class TestEngine(DispatcherConformance):
    @pytest.fixture
    def workers(self) -> WorkerPool:
        return Tasks(Engine())


class HasPriorities(Engine):
    """Runs jobs with low priority after all others."""

    def next(self) -> Job:
        self.jobs.sort(key=lambda job: job.type == "patient")
        return super().next()


class TestEngineWithPriorities(PriorityConformance):
    @pytest.fixture
    def workers(self) -> WorkerPool:
        return Tasks(HasPriorities())


class Deaf(Engine):
    """Delivers nothing."""

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        pass


class RemembersIds(Engine):
    """Drops jobs that are delivered again."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[JobId] = set()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        new = [job for job in jobs if job.id not in self.seen]
        self.seen.update(job.id for job in new)
        await super().dispatch(new)


class DeliversWhatIsNew(Engine):
    """Only delivers jobs with a reservation, and none from the sweep."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = 0

    def release(self, _places: int, /) -> None:
        self.kept += 1

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        if self.kept:
            self.kept -= 1
            await super().dispatch(jobs)


class RunsAtOnce(Engine):
    """Runs a job while the client waits for its id."""

    def __init__(self) -> None:
        super().__init__()
        self.running: AsyncJobs | None = None

    async def work(self, workers: WorkerPool, jobs: AsyncJobs) -> None:
        del workers
        self.running = jobs

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        for job in jobs:
            if self.running is not None:
                await self.running.run(job.id)


class BeginsAnew(Engine):
    """Delivers the whole job in its enqueued state, and trusts that."""

    async def run(self, job: Job, workers: WorkerPool, jobs: AsyncJobs) -> None:
        await workers.store.delete([job.id])
        await workers.store.insert([job])
        await super().run(job, workers, jobs)


class TriesAgain(Engine):
    """Has retries of its own."""

    async def run(self, job: Job, workers: WorkerPool, jobs: AsyncJobs) -> None:
        await super().run(job, workers, jobs)
        if (await jobs.find(job.id)).status is JobStatus.FAILED:
            await workers.store.delete([job.id])
            await workers.store.insert([job])
            await super().run(job, workers, jobs)


class RunsOnWhenCancelled(Engine):
    """Leaves a stopped job running in a background task."""

    async def run(self, job: Job, workers: WorkerPool, jobs: AsyncJobs) -> None:
        await asyncio.shield(asyncio.ensure_future(super().run(job, workers, jobs)))


class ChokesOnTheUnknown(Engine):
    """Loses a worker at each unknown job."""

    async def run(self, job: Job, workers: WorkerPool, jobs: AsyncJobs) -> None:
        if await jobs.get(job.id) is None:
            await anyio.sleep_forever()
        await super().run(job, workers, jobs)


class KeepsPlaces(Engine):
    """Never releases a reservation."""

    def __init__(self) -> None:
        super().__init__()
        self.places = 100

    def reserve(self, most: int, /) -> int:
        self.places -= most
        return most if self.places > 0 else 0


class RunsACopy(Engine):
    """Runs a copy under another id, and only reports its end."""

    async def run(self, job: Job, workers: WorkerPool, jobs: AsyncJobs) -> None:
        copy = job.model_copy(update={"id": JobId(f"job_{job.id[5:][::-1]}")})
        await workers.store.insert([copy])
        await super().run(copy, workers, jobs)


class OpensOnce(Engine):
    """Cannot be opened again after it was closed."""

    closed = False

    async def __aexit__(self, *_: object) -> None:
        self.closed = True

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        if not self.closed:
            await super().dispatch(jobs)


class Stacks(Engine):
    """Starts the newest jobs first."""

    def next(self) -> Job:
        return self.jobs.pop()


class StarvesThePatient(HasPriorities):
    """Never runs jobs with low priority."""

    async def run(self, job: Job, workers: WorkerPool, jobs: AsyncJobs) -> None:
        if job.type != "patient":
            await super().run(job, workers, jobs)


BROKEN: list[tuple[type[Engine], str]] = [
    (Deaf, "test_a_job_is_delivered_and_brings_its_result"),
    (Deaf, "test_many_jobs_bring_their_results_and_progress"),
    (RemembersIds, "test_a_retry_is_delivered"),
    (DeliversWhatIsNew, "test_a_delayed_job_is_delivered_when_it_is_due"),
    (DeliversWhatIsNew, "test_a_job_whose_delivery_was_lost_comes_up_again"),
    (RunsAtOnce, "test_dispatching_does_not_wait_for_the_job"),
    (BeginsAnew, "test_a_job_delivered_twice_runs_once"),
    (BeginsAnew, "test_what_is_delivered_after_its_end_stays_as_it_is"),
    (BeginsAnew, "test_a_job_that_is_cancelled_while_it_waits_never_runs"),
    (TriesAgain, "test_a_failed_job_is_not_run_again_by_the_engine"),
    (RunsOnWhenCancelled, "test_a_job_whose_run_is_cancelled_is_given_back"),
    (ChokesOnTheUnknown, "test_what_is_delivered_after_it_was_forgotten_harms_nobody"),
    (KeepsPlaces, "test_a_place_that_was_kept_and_not_used_is_given_back"),
    (RunsACopy, "test_output_is_read_while_a_job_runs"),
    (RunsACopy, "test_progress_shows_while_a_job_runs"),
    (RunsACopy, "test_a_job_that_is_cancelled_while_it_runs_stops"),
    (OpensOnce, "test_what_was_enqueued_before_a_restart_is_delivered_after_it"),
    (Engine, "test_what_is_more_urgent_begins_before_what_waited_longer"),
    (Stacks, "test_what_is_more_urgent_begins_before_what_waited_longer"),
    (StarvesThePatient, "test_what_is_more_urgent_begins_before_what_waited_longer"),
]

Rule = Callable[..., Awaitable[None]]


class Rules(DispatcherConformance, PriorityConformance):
    """Return the rules that an engine in this process can break."""


RULES: dict[str, Rule] = {
    name: rule
    for name, rule in inspect.getmembers(Rules, inspect.iscoroutinefunction)
    if name.startswith("test_")
}


@pytest.mark.parametrize(
    ("engine", "rule"), BROKEN, ids=[f"{kind.__name__}-{rule[5:]}" for kind, rule in BROKEN]
)
def test_a_broken_dispatcher_fails_the_rule_it_breaks(
    engine: type[Engine], rule: str, tmp_path: Path
) -> None:
    async def check() -> None:
        workers = Tasks(engine())
        workers.patience = 0.5
        given = {"workers": workers, "tmp_path": tmp_path}
        wanted = inspect.signature(RULES[rule]).parameters
        await RULES[rule](Rules(), **{key: given[key] for key in given if key in wanted})

    # A task group of the workers may wrap it.
    with pytest.RaisesGroup(
        pytest.RaisesExc((AssertionError, TimeoutError, UnknownJob)),
        allow_unwrapped=True,
        flatten_subgroups=True,
    ):
        anyio.run(check)


def test_every_rule_is_broken_by_some_dispatcher() -> None:
    assert set(RULES) == {rule for _, rule in BROKEN}


class LosesItsLast(SpoolWorkers):
    """Starts no replacement for killed workers."""

    async def kill(self) -> None:
        self._end()
        self.patience = 0.3


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
@pytest.mark.parametrize(
    "rule",
    [
        WorkerLossConformance.test_a_job_whose_worker_is_killed_runs_again,
        WorkerLossConformance.test_the_output_of_a_killed_worker_is_kept_and_continued,
        WorkerLossConformance.test_what_waited_for_a_killed_worker_is_run_by_others,
    ],
    ids=["running", "output", "waiting"],
)
async def test_without_replacement_workers_the_worker_loss_rules_fail(
    rule: Rule, tmp_path: Path
) -> None:
    workers = LosesItsLast(tmp_path)
    more = {"tmp_path": tmp_path} if "tmp_path" in inspect.signature(rule).parameters else {}
    with pytest.raises((AssertionError, TimeoutError)):
        await rule(WorkerLossConformance(), workers, **more)

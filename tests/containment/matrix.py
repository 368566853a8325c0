"""The combinations of misbehaviour, handler, engine and store, and what must hold after each."""

from __future__ import annotations

import asyncio
import multiprocessing.resource_tracker
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import pytest

from asyncjobs import AsyncJobs, Job, JobId, JobStatus, Settings
from asyncjobs.core.job import Delivery
from tests.everywhere import SERVERS
from tests.queues import finished, running, settled
from tests.waiting import until

from .misbehaviour import KINDS, PROCESS, Kind, handler_name, open_files

#: A lease that a busy machine does not overrun; stopping does not wait for endless handlers.
PATIENT = Settings(
    poll_interval=0.05, sweep_interval=0.2, progress_interval=0.01, grace=0.2, redelivery=60
)


@dataclass(frozen=True)
class Combination:
    """A kind of misbehaviour, where its handler runs, how jobs arrive, and on which store."""

    kind: Kind
    form: str
    way: str
    store: str

    def __str__(self) -> str:
        return f"{self.kind.name}-{self.form.replace(' ', '_')}-{self.way}-{self.store}"

    @property
    def thorough(self) -> bool:
        """Return whether it takes more than some milliseconds."""
        slow = self.form in PROCESS or self.kind.limited
        return slow or (self.way, self.store) != ("local", "memory")


def combinations(whole: Sequence[tuple[str, str]], ways: Sequence[str]) -> list[Combination]:
    """Combine all kinds and forms with these deliveries and stores; each kind once per server.

    A child process sees neither delivery nor store, and is slow: its forms have one of them each.
    """
    made = [
        Combination(kind, form, way, store)
        for number, kind in enumerate(KINDS.values())
        for turn, form in enumerate(kind.forms, number)
        for way, store in (whole[turn % len(whole)],) * (form in PROCESS) or whole
    ]
    for number, kind in enumerate(KINDS.values()):
        for turn, server in enumerate(SERVERS, number):
            form, way = kind.forms[turn % len(kind.forms)], ways[turn % len(ways)]
            made.append(Combination(kind, form, way, server))
    return made


def parametrized(whole: Sequence[tuple[str, str]], ways: Sequence[str]) -> pytest.MarkDecorator:
    """Run a test for each combination, on its store."""
    values = [
        pytest.param(one, one.store, id=str(one), marks=[pytest.mark.thorough] * one.thorough)
        for one in combinations(whole, ways)
    ]
    return pytest.mark.parametrize(
        ("combination", "store_kind"), values, indirect=["store_kind"], scope="session"
    )


async def misbehave_beside_others(jobs: AsyncJobs, kind: Kind, form: str, folder: Path) -> Job:
    """Run a job of a kind beside two others; return it when all three have ended.

    Asserts that the others are unaffected, and that the queue runs the next job.
    """
    go_on = folder / "go on"
    beside = [await running(jobs, name, go_on) for name in ("neighbour", "neighbour in thread")]
    done = await finished(jobs, handler_name(kind, form), kind.name)
    go_on.touch()
    for one in beside:
        other = await settled(jobs, one.id)
        assert (other.result, other.attempt, other.losses) == ("done", 1, 0), other
    if form in PROCESS:
        assert (await finished(jobs, "healthy in process")).status is JobStatus.COMPLETED
    after = await finished(jobs, "healthy")
    assert (after.status, after.attempt) == (JobStatus.COMPLETED, 1), after
    return done


def ending(job: Job) -> str:
    """Return the error code of a job, or its status."""
    return job.error.code if job.error else job.status.value


@asynccontextmanager
async def nothing_left() -> AsyncGenerator[None]:
    """After the block, wait until no task, thread or open file of it is left."""
    multiprocessing.resource_tracker.ensure_running()  # one per interpreter, not per test
    tasks, threads, files = set(asyncio.all_tasks()), set(threading.enumerate()), set(open_files())
    yield

    def left() -> list[object]:
        return [
            *(asyncio.all_tasks() - tasks),
            *(set(threading.enumerate()) - threads),
            *(set(open_files()) - files),
        ]

    try:
        await until(lambda: not left())
    except AssertionError as error:
        raise AssertionError(f"left: {left()}") from error


@dataclass
class EngineHere:
    """An engine in this process: awaits `jobs.run` in a task for each delivery."""

    delivery: Delivery = Delivery.PUSH
    ids: list[JobId] = field(default_factory=list[JobId])

    def __post_init__(self) -> None:
        self._more = anyio.Event()

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
        self.ids += [job.id for job in jobs]
        self._more.set()

    @asynccontextmanager
    async def working(self, run: Callable[[JobId], Any]) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._work, run, tasks)
            yield
            tasks.cancel_scope.cancel()

    async def _work(self, run: Callable[[JobId], Any], tasks: anyio.abc.TaskGroup) -> None:
        while True:
            while self.ids:
                tasks.start_soon(run, self.ids.pop())
            self._more = anyio.Event()
            await self._more.wait()

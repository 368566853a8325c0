"""Worker processes that are killed and suspended, and a web process that submits jobs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from asyncjobs import AsyncJobs, EnqueueOptions
from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import StoreUnavailable
from tests.chaos import application
from tests.chaos.application import LEASE, Errand
from tests.chaos.recording import Notes, Recorded, state_of
from tests.waiting import until

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "asyncjobs", "worker", "--concurrency", "6")
PATIENCE = 240.0
ROUNDS = 12
#: The rounds in which the store is restarted.
RESTARTS = (4, 8)
#: How many jobs are followed from their first state to the last.
FOLLOWED = 25
SOON = timedelta(seconds=0.5)


class Workers:
    """A number of `asyncjobs worker` processes; dead ones are replaced."""

    def __init__(self, folder: Path, url: str, size: int, queue: str = "jobs") -> None:
        self.size = size
        self._target = f"tests.chaos.application:{queue}"
        self.log = folder / "workers.log"
        self.environment = {
            **os.environ,
            application.STORE: url,
            application.NOTES: str(folder),
            "PYTHONWARNINGS": "default",
        }
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped: set[int] = set()

    def fill_up(self) -> None:
        """Start a worker for each one that has ended."""
        self._running = [one for one in self._running if one.poll() is None]
        while len(self._running) < self.size:
            with self.log.open("ab") as log:
                self._running.append(
                    subprocess.Popen(
                        [sys.executable, *COMMAND, self._target],
                        env=self.environment,
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )

    @property
    def pid(self) -> int:
        """The process id of the only worker."""
        [one] = self._running
        return one.pid

    def signal(self, number: signal.Signals) -> None:
        for one in self._running:
            one.send_signal(number)

    def kill(self, chance: random.Random) -> None:
        chance.choice(self._running).kill()

    async def stop_for(self, seconds: float, chance: random.Random) -> None:
        """Suspend one worker and continue it later."""
        able = [one for one in self._running if one.pid not in self._stopped and not one.poll()]
        if len(able) < 2:
            return
        one = chance.choice(able)
        self._stopped.add(one.pid)
        one.send_signal(signal.SIGSTOP)
        await anyio.sleep(seconds)  # the test needs a suspension of this length
        one.send_signal(signal.SIGCONT)
        self._stopped.discard(one.pid)

    def end(self) -> None:
        """Terminate all, and return when they have ended."""
        for one in self._running:
            one.send_signal(signal.SIGCONT)
            one.terminate()
        for one in self._running:
            one.wait(PATIENCE)

    def close(self) -> None:
        for one in self._running:
            one.kill()
            one.wait()


class Customers:
    """A web process: submits jobs, follows some, and reads all until every job has ended."""

    def __init__(self, jobs: AsyncJobs, notes: Notes, chance: random.Random) -> None:
        self.jobs = jobs
        self.notes = notes
        self.chance = chance
        self.accepted: list[JobId] = []
        self.open: set[JobId] = set()
        self._keys = count(1)

    async def submit(self, many: int, tasks: TaskGroup) -> None:
        """Submit jobs concurrently; return when all are accepted."""
        async with anyio.create_task_group() as together:
            for _ in range(many):
                together.start_soon(self._submit, f"key {next(self._keys)}", tasks)

    async def ask(self) -> None:
        """Read the jobs that have not ended, and record those that have ended now."""
        ids = [*self.open][:500]
        try:
            found = await self.jobs.store.get(ids)
        except StoreUnavailable:
            return
        self.open.difference_update(job.id for job in found if job and job.status.terminal)

    async def wait_until_open(self, most: int) -> None:
        """Return when at most this many jobs have not ended."""

        async def few_are_open() -> bool:
            await self.ask()
            return len(self.open) <= most

        await until(few_are_open, seconds=PATIENCE)

    async def note_ends(self) -> None:
        """Note the final state of each job."""
        for job in await self.jobs.store.get(self.accepted):
            if job is not None:
                self.notes.write("final", **state_of(job))

    async def _submit(self, key: str, tasks: TaskGroup) -> None:
        kind, errand = self._choose()
        options = EnqueueOptions(run_at=self.chance.choice([None, None, None, SOON]))
        job: Job | None = None
        while job is None:
            try:
                job = (
                    await self.jobs.enqueue(kind, errand, idempotency_key=key, options=options)
                ).job
            except StoreUnavailable:  # the job may exist: the same key finds it
                await anyio.sleep(0.1)
        self.notes.write("accepted", job=job.id, key=key)
        self.accepted.append(job.id)
        self.open.add(job.id)
        if len(self.accepted) <= FOLLOWED:
            tasks.start_soon(self._follow, job.id, len(self.accepted))

    def _choose(self) -> tuple[str, Errand]:
        chance, number = self.chance.random(), len(self.accepted)
        if number % 1000 == 7:
            return "errand", Errand(kills=self.chance.choice([1, 2]))
        if number % 500 == 11:
            return "in a process", Errand()
        seconds = self.chance.choice([0, 0, 0, 0, 0, 0, 0.02, 0.2])
        fails = self.chance.choice([0] * 8 + [1, 3])
        return ("errand" if chance < 0.8 else "in a thread"), Errand(seconds=seconds, fails=fails)

    async def _follow(self, job_id: JobId, watcher: int) -> None:
        async for job in self.jobs.subscribe(job_id):
            self.notes.write("seen", watcher=watcher, **state_of(job))


async def besiege(
    workers: Workers, customers: Customers, many: int, restart: Callable[[], None] | None
) -> None:
    """Run `many` jobs while workers die and the store restarts; return when all have ended."""
    chance = customers.chance
    async with customers.jobs, anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_full, workers)
        async with anyio.create_task_group() as stops:
            for number in range(ROUNDS):
                share = many * (number + 1) // ROUNDS - many * number // ROUNDS
                async with anyio.create_task_group() as together:
                    together.start_soon(customers.submit, share, tasks)
                    if restart is not None and number in RESTARTS:
                        together.start_soon(anyio.to_thread.run_sync, restart)
                stop = LEASE.total_seconds() * chance.choice([0.2, 1.5])
                stops.start_soon(workers.stop_for, stop, chance)
                if number % 2:
                    workers.kill(chance)
                await customers.wait_until_open(share // 2)
        await customers.wait_until_open(0)
        tasks.cancel_scope.cancel()
    async with customers.jobs:
        await anyio.to_thread.run_sync(workers.end)
        await customers.note_ends()


async def _keep_full(workers: Workers) -> None:
    while True:
        workers.fill_up()
        await anyio.sleep(0.1)


def web_process(url_store: Recorded, seed: int) -> Customers:
    """Return a web process that runs no jobs."""
    jobs = application.queue_on(url_store)
    return Customers(jobs, url_store.notes, random.Random(seed))  # noqa: S311  # no secret

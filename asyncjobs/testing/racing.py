"""Races on one data set: the parts to run, and a second process that runs one of them.

It does not import pytest, which the second process would have to load.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.to_thread import run_sync

from asyncjobs.core.job import Job, JobId
from asyncjobs.core.output import Append, StreamKind
from asyncjobs.protocols import Change, OutputStreams, Store, power_of
from asyncjobs.testing.samples import LANE, LATER, NOW, change_of, failed, sample_job

T = TypeVar("T")
U = TypeVar("U")

#: Makes another store of a data set. The second process gets it by pickling, so it is a function of
#: a module, or a `functools.partial` of a function or class.
Opener = Callable[[], Store]

Part = Callable[[Store], Awaitable[T]]


async def take_all(store: Store, *, limit: int) -> list[JobId]:
    """Take jobs until none is due; return their ids."""
    taken: list[JobId] = []
    while jobs := await store.take([LANE], now=NOW, until=LATER, limit=limit):
        taken += [job.id for job in jobs]
    return taken


async def count_up(store: Store, job_id: JobId, times: int) -> None:
    """Increase the revision of a job `times` times; repeat changes that another racer prevents."""
    for _ in range(times):
        done = False
        while not done:
            [found] = await store.get([job_id])
            assert found is not None
            newer = found.changed(revision=found.revision + 1)
            [done] = await store.replace([Change(newer, found.revision)])


async def insert_keyed(store: Store, number: int) -> tuple[list[JobId], list[JobId]]:
    """Insert a job for each of `number` keys; return their ids, and the ids stored for the keys."""
    jobs = [sample_job(idempotency_key=f"k{place}") for place in range(number)]
    stored = [(await store.insert([job]))[0].id for job in jobs]
    return [job.id for job in jobs], stored


async def append_many(store: Store, job_id: JobId, number: int) -> list[int]:
    """Append to the output of a job `number` times; return the ends."""
    streams = power_of(store, OutputStreams)
    assert streams is not None
    one = Append(job_id, "log", StreamKind.TEXT, 1, 1, b"ab", 10**9, 10**9)
    return [(await streams.append([one]))[0].end for _ in range(number)]


async def insert_members(store: Store, batches: Sequence[JobId], rounds: int) -> list[Job]:
    """Insert a job of each batch in each round, all of a round in one call; return the jobs."""
    inserted: list[Job] = []
    for _ in range(rounds):
        inserted += await store.insert([sample_job(batch=batch) for batch in batches])
    return inserted


async def fail_all(store: Store, jobs: Sequence[Job]) -> None:
    """Let jobs fail, two in one call."""
    for one, two in zip(jobs[::2], jobs[1::2], strict=True):
        await store.replace([change_of(job, failed(job)) for job in (one, two)])


async def play_both(first: Part[T], one: Store, second: Part[U], two: Store) -> tuple[T, U]:
    """Run two parts at the same time in this event loop; return their results."""
    here: list[T] = []
    there: list[U] = []

    async def play() -> None:
        there.append(await second(two))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play)
        await anyio.lowlevel.checkpoint()
        here.append(await first(one))
    return here[0], there[0]


class SecondProcess:
    """Runs parts on its own stores; started when it gets the first part."""

    def __init__(self) -> None:
        self._running: tuple[BaseProcess, Connection] | None = None

    async def race(self, opener: Opener, there: Part[U], here: Callable[[], Awaitable[T]]) -> Any:
        """Run a part there and one here at the same time; return the results, the local one first.

        Raises `AssertionError`, with the traceback, for any error raised there.
        """
        connection = await run_sync(self._start)
        await run_sync(connection.send, (opener, there))
        await self._answer(connection)  # its store is open
        connection.send("go")
        mine: list[object] = []
        theirs: list[object] = []

        async def listen() -> None:
            theirs.append(await self._answer(connection))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            mine.append(await here())
        return mine[0], theirs[0]

    def close(self) -> None:
        """End the process."""
        if self._running is not None:
            process, connection = self._running
            connection.close()
            process.kill()
            process.join()

    def _start(self) -> Connection:
        if self._running is None:
            # Spawned, since a fork would copy the test's connections, locks and event loop.
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._running = process, ours
        return self._running[1]

    async def _answer(self, connection: Connection) -> object:
        try:
            failed, answer = await run_sync(connection.recv, abandon_on_cancel=True)
        except EOFError:
            raise AssertionError("The other process has ended.") from None
        if failed:
            raise AssertionError(f"In the other process:\n{answer}")
        return answer


@contextmanager
def second_process() -> Generator[SecondProcess]:
    """Provide a second process for the block."""
    process = SecondProcess()
    try:
        yield process
    finally:
        process.close()


def _serve(connection: Connection) -> None:
    while True:
        try:
            opener, part = connection.recv()
            answer = anyio.run(_play, connection, opener, part)
        except EOFError:
            return
        except BaseException:  # noqa: BLE001  # raised again by the test
            connection.send((True, traceback.format_exc()))
        else:
            connection.send((False, answer))


async def _play(connection: Connection, opener: Opener, part: Part[T]) -> T:
    async with opener() as store:
        connection.send((False, "ready"))
        connection.recv()
        return await part(store)

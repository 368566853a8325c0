"""A small world in simulated time: machines with real queues, users, a network, accidents.

Several machines share one store. Calls travel in tasks of the network, so a call takes effect even
if its machine stops in between. All events are recorded and judged like those of the chaos tests.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobHandle, Policy, Settings
from asyncjobs.core.job import JobId
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.errors import AsyncJobsError
from asyncjobs.protocols import Change, ChangeNotices, Store
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, LoopClock
from tests.chaos.recording import Event, Notes, Recorded, state_of
from tests.simulation.handlers import DEEDS, Errand, Handlers
from tests.simulation.loop import MACHINE, SimulatedLoop, run_simulated

T = TypeVar("T")

MACHINES = 3
JOBS = 16
#: How long jobs are submitted and accidents happen.
STORMY_SECONDS = 300.0
#: After this time everything has ended: every deadline has passed long ago.
PATIENCE_SECONDS = 3600.0

SETTINGS = Settings(
    poll_interval=timedelta(seconds=5),
    sweep_interval=timedelta(seconds=11),
    progress_interval=timedelta(seconds=2),
    block_warning_after=timedelta(days=1),  # the watchdog's thread runs in real time
)

POLICY = Policy(retention=None, deadline=timedelta(minutes=10))

#: A queue closes within its grace period and five seconds; timers are late, too.
CLOSE_SECONDS = SETTINGS.grace.total_seconds() + 5.1

#: From this duration on, slow calls may explain other effects.
SLOW_SECONDS = 3.0

#: Most calls take almost no time, some are slow, a few very slow. A lease outlasts any two.
LATENCIES = ((0.6, 0.0003), (0.97, 0.02), (0.998, 2.0), (1.0, 10.0))

FAULTS = (Faults(before=0.1, after=0.1), Faults(before=0.4, after=0.4), Faults(before=1, after=1))


def _ignored(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None: ...


class Ledger(Notes):
    """Records in memory, in simulated time."""

    def __init__(self, history: list[Event], pid: int) -> None:
        self._history = history
        self._calls = count()
        self.pid = pid
        self.closed = False

    def write(self, what: str, **facts: Any) -> None:
        if not self.closed:
            self._history.append({"what": what, "pid": self.pid, "at": self.now(), **facts})

    def now(self) -> float:
        return LoopClock().now().timestamp()

    def number(self) -> str:
        return f"{self.pid}-{next(self._calls)}"


class Line:
    """A machine's connection to the store."""

    powers: frozenset[type] = frozenset({ChangeNotices})

    def __init__(self, world: World, notes: Ledger) -> None:
        self._world = world
        self._notes = notes
        self._store = Recorded(world.store, notes)
        self._notices: asyncio.Queue[Sequence[JobId]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self._write([job.id for job in jobs], lambda: self._store.insert(jobs))

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        ids = [change.job.id for change in changes]
        return await self._write(ids, lambda: self._store.replace(changes))

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return await self._carry(lambda: self._store.get(ids))

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await self._carry(lambda: self._store.take(lanes, now=now, until=until, limit=limit))

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return await self._carry(lambda: self._store.delete(ids))

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        while True:
            yield await self._notices.get()

    def notice(self, ids: Sequence[JobId]) -> None:
        """Record an event of the machine if its process still runs."""
        if self._notices.qsize() < 100:
            self._notices.put_nowait(ids)

    async def _write(self, ids: Sequence[JobId], call: Callable[[], Awaitable[T]]) -> T:
        async def write() -> T:
            done = await call()
            self._world.announce(ids, self)
            return done

        return await self._carry(write)

    async def _carry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Let the network carry a call to the store, and the answer back."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        there, back = self._world.latency(), self._world.latency() / 2
        slow = there + back > SLOW_SECONDS
        if slow:
            self._notes.write("trouble", kind="slow")

        async def travel() -> None:
            await asyncio.sleep(there)
            value = await call()
            await asyncio.sleep(back)
            if slow:
                self._notes.write("calm", kind="slow")
            if not answer.done():
                answer.set_result(value)

        self._world.do(travel)
        return await answer


class Machine:
    """One process: a real queue with handlers, which may be frozen, killed, stopped and opened."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.notes = Ledger(world.history, number)
        self.line = world.connection(world, self.notes)
        self.store = FaultyStore(self.line, seed=world.chance.getrandbits(32))
        self.jobs = AsyncJobs(
            self.store,
            clock=LoopClock(),
            settings=SETTINGS,
            dispatcher=LocalDispatcher(concurrency=3),
            policy=POLICY,
        )
        self.dead = False
        self._pauses = 0
        self._context = contextvars.copy_context()
        self._context.run(MACHINE.set, number)
        Handlers(self.jobs, self.notes, self).register()

    def do(self, call: Callable[[], Awaitable[T]]) -> asyncio.Task[T | AsyncJobsError | None]:
        """Start a call in this process; return its result, or an error of the library."""

        async def body() -> T | AsyncJobsError | None:
            try:
                return await call()
            except AsyncJobsError as error:
                return error

        context = self._context.copy()
        return self.world.loop.create_task(body(), context=context)

    async def answer(self, call: Callable[[], Awaitable[T]], seconds: float = 30) -> Any:
        """Call the process; return None if there is no answer in time."""
        task = self.do(call)
        await asyncio.wait({task}, timeout=seconds)
        return task.result() if task.done() else None

    @property
    def chance(self) -> random.Random:
        return self.world.chance

    @property
    def over(self) -> bool:
        return self.notes.closed

    @property
    def open(self) -> bool:
        return self.jobs.is_open and not self.dead

    def kill(self) -> None:
        if self.over:
            return
        self.dead = True
        self.notes.write("trouble", kind="killed")
        self.world.loop.freeze(self.number)

    async def pause(self, seconds: float) -> None:
        if self.over:
            return
        self._pauses += 1
        self.notes.write("trouble", kind="paused")
        self.world.loop.freeze(self.number)
        await asyncio.sleep(seconds)
        if not self.dead:
            self.world.loop.thaw(self.number)
            self.notes.write("calm", kind="paused")

    def block(self, seconds: float) -> None:
        self.world.do(lambda: self.pause(seconds))

    async def suffer(self, faults: Faults, seconds: float) -> None:
        self.notes.write("trouble", kind="cut off")
        self.store.faults = faults
        await asyncio.sleep(seconds)
        self.store.faults = Faults()
        self.notes.write("calm", kind="cut off")

    async def stop(self) -> None:
        """Close the queue; no task may be left."""
        self.notes.write("trouble", kind="stopping")
        pauses = self._pauses - self.world.loop.is_frozen(self.number)
        task = self.do(self.jobs.close)
        await asyncio.wait({task}, timeout=CLOSE_SECONDS)
        if not task.done() and not self.dead and self._pauses > pauses:
            await asyncio.wait({task}, timeout=10 * CLOSE_SECONDS)
        if self.dead:
            return
        if not task.done():
            self._wrong("did not close in time")
            return
        if isinstance(task.result(), Exception):
            self._wrong(f"raised {task.result()!r} when it closed")
        # A handler's own tasks end by themselves; swallowed cancellations end within seconds.
        await asyncio.sleep(CLOSE_SECONDS)
        left = [task.get_name() for task in self.world.loop.tasks_of(self.number)]
        if left and not self.dead and self._pauses == pauses:
            self._wrong(f"left {sorted(left)}")
        self.notes.write("calm", kind="stopping")

    def _wrong(self, words: str) -> None:
        self.notes.write("wrong", words=f"machine {self.number} {words}")


class World:
    """The world of one seed."""

    connection: type[Line] = Line

    def __init__(self, loop: SimulatedLoop, store: Store, seed: int) -> None:
        self.loop = loop
        self.store = store
        self.chance = random.Random(seed)  # noqa: S311  # reproducible, no secrets
        self.history: list[Event] = []
        self.notes = Ledger(self.history, 0)
        self.machines: list[Machine] = []
        self.accepted: list[JobId] = []
        self._everyone: list[Machine] = []
        self._numbers = count(1)
        self._context = contextvars.copy_context()
        self._stormy = True
        self._settled = False

    def latency(self) -> float:
        chance = self.chance.random()
        [longest, *_] = [longest for share, longest in LATENCIES if chance <= share]
        return self.chance.uniform(0, longest)

    def do(self, call: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Start a task that belongs to no machine."""

        async def body() -> None:
            await call()

        return self.loop.create_task(body(), context=self._context.copy())

    def announce(self, ids: Sequence[JobId], writer: Line) -> None:
        """Let the store send its change notices."""
        for machine in self.machines:
            if machine.line is not writer and not machine.dead and self.chance.random() < 0.9:
                self.loop.call_later(self.latency(), machine.line.notice, ids)

    async def live(self) -> None:
        """Let a storm pass, wait until every job has ended, and stop all machines."""
        operators = [self.do(self._operate) for _ in range(MACHINES)]
        users = [self.do(partial(self._use, f"key {n}")) for n in range(JOBS)]
        await asyncio.sleep(STORMY_SECONDS)
        self._stormy = False
        await self._first(asyncio.wait(users), "the users are still not answered")
        await self._first(self._wait_for_ends(), "some jobs have not ended")
        self._settled = True
        await self._first(asyncio.wait(operators), "the machines could not be stopped")
        for operator in operators + users:
            if operator.done():
                operator.result()
        for job in await self.store.get(self.accepted):
            if job is not None:
                self.notes.write("final", **state_of(job))
        for machine in self._everyone:
            machine.notes.closed = True
        self.notes.closed = True
        await self._bury()

    async def _first(self, what: Any, otherwise: str) -> None:
        try:
            await asyncio.wait_for(what, PATIENCE_SECONDS)
        except TimeoutError:
            self.notes.write("wrong", words=otherwise)

    async def _wait_for_ends(self) -> None:
        while True:
            jobs = await self.store.get(self.accepted)
            if all(job is not None and job.status.terminal for job in jobs):
                return
            await asyncio.sleep(5)

    # machines

    async def _operate(self) -> None:
        """Keep one machine running through accidents of all kinds, and stop it at the end."""
        machine = await self._boot()
        while not self._settled:
            await asyncio.sleep(self.chance.uniform(1, 60 if self._stormy else 10))
            if machine.dead:
                machine = await self._boot(instead_of=machine)
            elif self._stormy:
                machine = await self._accident(machine)
        if not machine.dead:
            await machine.stop()

    async def _accident(self, machine: Machine) -> Machine:
        seconds = self.chance.choice([0.01, 1, 10, 45])
        match self.chance.choice(["none", "kill", "pause", "cut", "cut", "stop", "restart"]):
            case "kill":
                machine.kill()
            case "pause":
                await machine.pause(seconds)
            case "cut":
                await machine.suffer(self.chance.choice(FAULTS), seconds)
            case "stop":
                await machine.stop()
                return machine if machine.dead else await self._boot(instead_of=machine)
            case "restart":
                await machine.stop()
                if not machine.dead:
                    await self._open(machine)
            case _:
                pass
        return machine

    async def _boot(self, instead_of: Machine | None = None) -> Machine:
        if instead_of is not None:
            self.machines.remove(instead_of)
            await asyncio.sleep(self.chance.choice([0.1, 5, 30]))
        machine = Machine(self, next(self._numbers))
        self._everyone.append(machine)
        self.machines.append(machine)
        await self._open(machine)
        return machine

    async def _open(self, machine: Machine) -> None:
        error = await machine.answer(machine.jobs.open)
        if error is not None or not (machine.open or machine.dead):
            machine.notes.write("wrong", words=f"machine {machine.number} did not open: {error!r}")

    async def _bury(self) -> None:
        """End the tasks of killed machines, whose effects must stay invisible."""
        self.loop.set_exception_handler(_ignored)
        for machine in self._everyone:
            machine.store.faults = Faults(before=1)
            self.loop.thaw(machine.number)
            if machine.open or machine.dead:
                machine.do(machine.jobs.close)
            await asyncio.sleep(20)
            while tasks := self.loop.tasks_of(machine.number):
                for task in tasks:
                    task.cancel()
                await asyncio.sleep(1)

    # users

    async def _use(self, key: str) -> None:
        """Submit a job like a client: repeat it under its key until there is an answer."""
        await asyncio.sleep(self.chance.uniform(0, STORMY_SECONDS * 0.8))
        kind, what = self._errand()
        options = EnqueueOptions(
            run_at=self.chance.choice([None, None, None, 30]),
            deadline=self.chance.choice([None, None, None, None, 50]),
        )
        handle: JobHandle[Any] | None = None
        while handle is None:
            machine = self._machine()
            if machine is not None:
                enqueue = partial(machine.jobs.enqueue, kind, what)
                answer = await machine.answer(
                    partial(enqueue, idempotency_key=key, options=options)
                )
                handle = answer if isinstance(answer, JobHandle) else None  # pyright: ignore[reportUnknownVariableType]
            if handle is None:
                await asyncio.sleep(self.chance.uniform(0.1, 5))
        self.notes.write("accepted", job=handle.id, key=key)
        self.accepted.append(handle.id)
        match self.chance.choice(["leave", "leave", "follow", "follow", "cancel"]):
            case "follow":
                await self._follow(handle.id)
            case "cancel":
                await asyncio.sleep(self.chance.choice([0, 1, 20]))
                if machine := self._machine():
                    await machine.answer(lambda: machine.jobs.cancel(handle.id))
            case _:
                pass

    def _machine(self) -> Machine | None:
        open_ones = [machine for machine in self.machines if machine.open]
        return self.chance.choice(open_ones) if open_ones else None

    def _errand(self) -> tuple[str, Errand]:
        [does] = self.chance.choices([*DEEDS], [often for often, _ in DEEDS.values()])
        seconds = self.chance.choice([0, 0.01, 1, 1, 5, 60])
        errand = Errand(does=does, seconds=seconds, times=self.chance.choice([1, 1, 2, 9]))
        # Without a timeout it would spin up to its deadline.
        brief = seconds < 20 or does == "swallow all"
        return ("brief" if brief else "long"), errand

    async def _follow(self, job_id: JobId) -> None:
        """Follow a job to its end; a follower whose machine stops records nothing."""
        machine = self._machine()
        if machine is None:
            return
        watcher = next(self._numbers)
        seen: list[dict[str, Any]] = []

        def note(job: Job) -> None:
            seen.append({"watcher": watcher, **state_of(job)})

        async def follow() -> None:
            async for job in machine.jobs.subscribe(job_id):
                note(job)

        task = machine.do(follow)
        while not task.done() and machine.open:
            await asyncio.wait({task}, timeout=10)
        if seen and seen[-1]["status"] in {"completed", "failed", "cancelled"}:
            for state in seen:
                self.notes.write("seen", **state)


@dataclass(frozen=True)
class Story:
    """The outcome of one seed."""

    seed: int
    history: list[Event]


class _Errors(logging.Handler):
    """Records errors that this thread logs: none is expected, whatever handlers do."""

    def __init__(self, notes: Ledger) -> None:
        super().__init__(logging.ERROR)
        self._notes = notes
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._thread:
            return  # of an application that another test serves
        if "did not close within" in record.getMessage():
            return  # its duration is judged instead
        words = (
            f"{record.getMessage()} {record.exc_info[1]!r}"
            if record.exc_info
            else record.getMessage()
        )
        self._notes.write("wrong", words=f"logged: {words}")


def simulate(
    seed: int, store: Callable[[], Store] = MemoryStore, kind: type[World] = World
) -> Story:
    """Let a world of a kind live through the storm of a seed."""
    histories: list[list[Event]] = []

    async def live(loop: SimulatedLoop) -> None:
        world = kind(loop, store(), seed)
        histories.append(world.history)
        errors = _Errors(world.notes)
        log = logging.getLogger("asyncjobs")
        level = log.level
        log.setLevel(logging.ERROR)
        log.addHandler(errors)
        loop.set_exception_handler(
            lambda _, about: world.notes.write("wrong", words=f"asyncio: {about}")
        )
        try:
            await world.live()
        finally:
            log.removeHandler(errors)
            log.setLevel(level)

    run_simulated(live, seed)
    return Story(seed, histories[0])

"""Enqueues the jobs of schedules, one for each tick, and reads and changes their records.

The record of a schedule is due at its next tick, in a lane of its own. The store gives it to one
process at a time. That process writes the tick into the record, stores the job, and writes the
job's id. If it dies in between, the record is due again soon, and another process continues; the
job's id and idempotency key are made of the tick.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from asyncjobs.core import lifecycle, schedules
from asyncjobs.core.job import Job, ScheduleState, schedule_lane
from asyncjobs.core.schedules import Declared, Definition, Schedule, Tick, Timetable
from asyncjobs.cron import timetable_of
from asyncjobs.errors import ConfigurationError, StoreError, UnknownSchedule, UnreadableJob
from asyncjobs.records.logging import log
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal
from asyncjobs.settings import Settings

#: Stores the job of a tick.
Submit = Callable[[Declared, Tick], Awaitable[Job]]

# The longest time between two looks, each of which stores records that were removed.
_LONGEST_PAUSE = timedelta(minutes=1)

# How long a record waits whose ticks this process cannot compute; another process may.
_LEFT_ALONE = timedelta(minutes=1)

# A look finishes an interrupted tick, enqueues a new one, and sees that no more is due.
_MAX_ROUNDS = 3

_MIN_PAUSE = timedelta(milliseconds=1)


class Schedules:
    """The loop that enqueues the jobs of ticks: one per process; any number may share a store."""

    def __init__(
        self,
        declared: Mapping[str, Declared],
        repository: Repository,
        settings: Settings,
        submit: Submit,
    ) -> None:
        self._declared = declared
        self._repository = repository
        self._settings = settings
        self._submit = submit
        self._wake = Signal()
        # The schedules whose records have the definition of this process or a later one.
        self._begun: set[str] = set()
        self._clock_at: datetime | None = None
        # The next ticks by the definitions of this process.
        self._next: dict[str, datetime | None] = {}
        self._not_computable: set[str] = set()
        self._unreadable: set[str] = set()
        self._looking = self._closed = False
        self._looked = Signal()

    def wake(self) -> None:
        """Look at the schedules now: one of them was changed."""
        self._wake.set()

    async def run(self) -> None:
        """Enqueue the jobs of ticks until cancelled."""
        while True:
            try:
                self._looking = bool(self._declared) and not self._closed
                if self._looking:
                    await self.look()
            except StoreError as error:
                log.warning("Schedules could not be read from the store: %s", error)
            finally:
                self._looking = False
                self._looked.set()
            await self._wake.wait(self._pause())

    async def close(self) -> None:
        """Enqueue no more jobs; return when those of due ticks are stored and recorded."""
        self._closed = True
        while self._looking:
            await self._looked.wait()

    async def look(self) -> list[Job]:
        """Store records of new schedules, and enqueue the jobs of due ticks; return the jobs."""
        await self.begin()
        lanes = [schedule_lane(name) for name in self._declared]
        jobs: list[Job] = []
        for _ in range(0 if self._closed else _MAX_ROUNDS):
            until = self._repository.now() + self._settings.redelivery
            records = await self._repository.take(lanes, until=until, limit=len(lanes) or 1)
            if not records:
                break
            for record in records:
                try:
                    job = await self._look_at(record, until)
                except UnreadableJob as error:
                    log.warning("The job of schedule %r: %s", record.idempotency_key, error)
                    continue
                except StoreError:
                    raise  # the others are not reachable either
                except Exception:
                    log.exception("The job of schedule %r failed", record.idempotency_key)
                    continue
                if job is not None:
                    jobs.append(job)
        return jobs

    async def begin(self) -> None:
        """Store the records of the declared schedules that have none, also of removed ones.

        The first time, a record with another definition gets that of this process: the process
        that opened the queue last decides.
        """
        before, self._clock_at = self._clock_at, self._repository.now()
        if before is not None and before - self._clock_at > schedules.CLOCK_FAULT:
            self._next.clear()
        for declared, record in await self._records():
            await self._begin(declared, record)

    async def _records(self) -> list[tuple[Declared, Job | None]]:
        """Read the records of the declared schedules; those that cannot be read are left out."""
        declared = list(self._declared.values())
        if not declared:
            return []
        read = self._repository.records.get
        ids = [schedules.record_id(one.name) for one in declared]
        try:
            return list(zip(declared, await read(ids), strict=True))
        except UnreadableJob:
            pass
        found: list[tuple[Declared, Job | None]] = []
        for one, record_id in zip(declared, ids, strict=True):
            try:
                [record] = await read([record_id])
            except UnreadableJob as error:
                if one.name not in self._unreadable:
                    log.warning("The record of schedule %r cannot be used: %s", one.name, error)
                self._unreadable.add(one.name)
            else:
                self._unreadable.discard(one.name)
                found.append((one, record))
        return found

    async def _begin(self, declared: Declared, record: Job | None) -> None:
        repository, name = self._repository, declared.name
        if record is None:
            new = schedules.new_record(declared, repository.now())
            [record] = await repository.records.insert([new])
            if name in self._begun and record.trace_id == new.trace_id:
                log.warning(
                    "Schedule %r was removed from the store, although this process declares it. "
                    "It was stored again; its next tick is %s",
                    name,
                    new.schedule and new.schedule.next_at,
                )
        await self._repair(record, declared)
        if name not in self._begun:
            now = repository.now()
            await _change(repository, record, lambda it: schedules.redefined(it, declared, now))
            self._begun.add(name)

    async def _repair(self, record: Job, declared: Declared) -> None:
        """Let a record that a wrong clock has changed go on from now."""
        state = record.schedule
        if state is None:
            return
        try:
            _, timetable = _timing(state, declared)
        except (ConfigurationError, ValueError, TypeError):
            return  # reported when its tick is due
        good = schedules.repaired(record, timetable, self._repository.now())
        if good is not None and await self._write(record, good):
            log.warning(
                "Schedule %r goes on from now. A clock was far ahead when it was written: "
                "its latest tick was %s, and its next tick %s",
                declared.name,
                state.last_at,
                state.next_at,
            )

    async def _look_at(self, record: Job, until: datetime) -> Job | None:
        """Enqueue the job of a record's tick, if one is due; return the job."""
        name, state = record.idempotency_key or "", record.schedule
        declared = self._declared.get(name)
        if declared is None or state is None:
            return None
        # Another version of the code may have written the definition: it says when, and this
        # process what.
        now = self._repository.now()
        try:
            definition, timetable = _timing(state, declared)
        except (ConfigurationError, ValueError, TypeError) as error:
            await self._leave_alone(record, state, now, error)
            return None
        retention = declared.kind.policy.retention
        hold = self._settings.redelivery
        step = schedules.look_at(state, timetable, definition.missed, now, retention, hold)
        if step.tick is None:
            if state.next_at is not None and state.next_at <= now:
                log.warning("A tick of schedule %r was missed: %s", name, state.next_at)
            await self._write(record, lifecycle.reschedule(record, step.state))
            return None
        marked = lifecycle.reschedule(record, step.state, waits_until=until)
        # Too late, another process may have taken the record as well.
        if not await self._write(record, marked) or self._repository.now() >= until:
            return None
        tick, begun = schedules.tick_of(record, step.tick), state.enqueuing_since is not None
        job = await self._job_of(tick, declared, marked, begun=begun)
        await _change(self._repository, marked, lambda it: schedules.enqueued(it, tick.at, job.id))
        return job

    async def _job_of(self, tick: Tick, declared: Declared, record: Job, *, begun: bool) -> Job:
        """Store the job of a tick, except if a process that has begun with it stored the job."""
        repository = self._repository
        if begun and tick.job_id is not None:
            [stored] = await repository.records.get([tick.job_id])
            if stored is not None:
                return stored
        try:
            return await self._submit(declared, tick)
        except StoreError:
            raise
        except Exception:
            now = repository.now()
            await _change(repository, record, lambda it: schedules.given_up(it, tick.at, now))
            raise

    async def _leave_alone(
        self, record: Job, state: ScheduleState, now: datetime, error: Exception
    ) -> None:
        name = record.idempotency_key or ""
        if name not in self._not_computable:
            log.warning("The ticks of schedule %r are left to other processes: %s", name, error)
        self._not_computable.add(name)
        until = now + _LEFT_ALONE
        await self._write(record, lifecycle.reschedule(record, state, waits_until=until))

    async def _write(self, before: Job, after: Job) -> bool:
        [done] = await self._repository.replace([JobWrite(before, after)])
        return done

    def _pause(self) -> float:
        """Return the seconds until the next look, at the next tick at the latest."""
        now = self._repository.now()
        pause = min(self._settings.sweep_interval, _LONGEST_PAUSE)
        for name, declared in self._declared.items():
            upcoming = self._next.get(name)
            if name not in self._next or (upcoming is not None and upcoming <= now):
                upcoming = self._next[name] = declared.timetable.after(now)
            if upcoming is not None:
                pause = min(pause, upcoming - now)
        return max(pause, _MIN_PAUSE).total_seconds()


async def read_schedules(
    repository: Repository, declared: Collection[str] = ()
) -> Sequence[Schedule]:
    """Return all schedules of the store, by name; of a store that cannot list, the declared ones.

    A record that cannot be read is left out.
    """
    records = await repository.list_records()
    if records is None:
        records = [record for name in declared if (record := await _find(repository, name))]
    found = schedules.described(records, declared)
    ids = [one.last_job for one in found if one.last_job is not None]
    status = {job.id: job.status for job in await repository.get(ids) if job is not None}
    return [
        one if one.last_job is None else replace(one, last_status=status.get(one.last_job))
        for one in found
    ]


async def set_paused(repository: Repository, name: str, *, paused: bool) -> None:
    """Pause or resume a schedule; raise `UnknownSchedule` if it has no record."""
    record = await _find(repository, name)
    if record is None:
        raise UnknownSchedule(name)

    def change(state: ScheduleState) -> ScheduleState | None:
        return None if state.paused is paused else state.changed(paused=paused)

    if not await _change(repository, record, change):
        raise UnknownSchedule(name)


async def remove_record(repository: Repository, name: str) -> None:
    """Delete the record of a schedule; raise `UnknownSchedule` if it has none."""
    [existed] = await repository.records.delete([schedules.record_id(name)])
    if not existed:
        raise UnknownSchedule(name)


async def has_record(repository: Repository, name: str) -> bool:
    """Return whether the store has a record of a schedule."""
    return await _find(repository, name) is not None


async def _find(repository: Repository, name: str) -> Job | None:
    [record] = await repository.records.get([schedules.record_id(name)])
    return record


async def _change(
    repository: Repository,
    record: Job,
    change: Callable[[ScheduleState], ScheduleState | None],
) -> bool:
    """Change the newest state of a record; return False if the record is gone."""
    found: Job | None = record
    while found is not None and found.schedule is not None:
        state = change(found.schedule)
        if state is None:
            return True
        written = lifecycle.reschedule(found, state)
        [done] = await repository.replace([JobWrite(found, written)])
        if done:
            return True
        [found] = await repository.records.get([record.id])
    return False


def _timing(state: ScheduleState, declared: Declared) -> tuple[Definition, Timetable]:
    """Return the stored definition of a schedule and its ticks."""
    if state.definition == declared.definition.text():
        return declared.definition, declared.timetable
    definition = Definition.parse(state.definition)
    return definition, timetable_of(definition)

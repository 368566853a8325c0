"""Declares schedules, and lists, pauses, runs and removes them: a part of `AsyncJobs`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar, Unpack, overload

from asyncjobs.core.handlers import JobType, Registry
from asyncjobs.core.job import Job
from asyncjobs.core.schedules import (
    Declared,
    Definition,
    Missed,
    Schedule,
    ScheduleTerms,
    Tick,
    check_missed,
    check_options,
    check_schedule_name,
    check_submission,
    checked_interval,
)
from asyncjobs.core.submission import NO_OPTIONS, EnqueueOptions
from asyncjobs.cron import timetable_of
from asyncjobs.errors import (
    ConfigurationError,
    InvalidPayload,
    PayloadTooLarge,
    RequestRejected,
    UnknownSchedule,
    UnknownType,
)
from asyncjobs.handles import FollowedQueue
from asyncjobs.protocols import CallbackSender, JobHandle
from asyncjobs.runtime.runtime import Runtime
from asyncjobs.runtime.schedules import has_record, read_schedules, remove_record, set_paused
from asyncjobs.settings import Seconds

P = TypeVar("P")


class Scheduling(FollowedQueue, ABC):
    """Enqueues jobs at fixed times."""

    registry: Registry
    _callbacks: CallbackSender | None

    @property
    @abstractmethod
    def _running(self) -> Runtime:
        """The runtime of the open queue; raises `NotOpen` and `WrongEventLoop`."""

    @cached_property
    def declared_schedules(self) -> dict[str, Declared]:
        """The schedules that `schedule` has declared in this process, by name."""
        return {}

    @overload
    def schedule(
        self,
        name: str,
        handler: JobType[None, Any],
        payload: None = None,
        /,
        **terms: Unpack[ScheduleTerms],
    ) -> None: ...

    @overload
    def schedule(
        self, name: str, handler: JobType[P, Any], payload: P, /, **terms: Unpack[ScheduleTerms]
    ) -> None: ...

    @overload
    def schedule(
        self, name: str, handler: str, payload: Any = None, /, **terms: Unpack[ScheduleTerms]
    ) -> None: ...

    def schedule(  # noqa: PLR0913  # one parameter per option
        self,
        name: str,
        handler: JobType[Any, Any] | str,
        payload: Any = None,
        /,
        *,
        cron: str | None = None,
        every: Seconds | None = None,
        timezone: str | None = None,
        missed: Missed = "skip",
        user_id: str | None = None,
        options: EnqueueOptions | None = None,
    ) -> None:
        """Declare a schedule: enqueue a job of a handler at each tick.

        Call it when the module is imported, in each process that may enqueue the jobs. The ticks
        are those of a `cron` expression in a time zone (UTC by default), or the multiples of
        `every` since 1970. However many processes declare the schedule, each tick has one job; the
        handler finds the tick in `job.scheduled_at`. Ticks are missed while no process is open or
        the schedule is paused: `missed="skip"` runs none of them that is more than a minute late,
        `missed="once"` runs one job for the latest of them. The jobs have the owner `user_id` and
        the `options`.

        The name identifies the schedule in the store. Raises `ConfigurationError` for a name that
        is not valid or used twice, an unknown handler, a payload that it does not take, a cron
        expression that is not valid or never fires, an unknown time zone, an interval below one
        second, an owner that is no text, options that only fit a single job, and if the extra
        `cron` is missing.
        """
        check_schedule_name(name)
        if name in self.declared_schedules:
            raise ConfigurationError(
                f"Schedule {name!r} is declared twice, or its module is loaded twice: "
                "once as __main__ and once under its name."
            )
        check_missed(name, missed)
        chosen = NO_OPTIONS if options is None else options
        check_options(name, chosen)
        self._check_callback(name, chosen)
        kind, text = self._checked_payload(name, handler, payload)
        _check_timing(name, cron, every, timezone)
        definition = Definition(
            type=kind.name,
            cron=None if cron is None else " ".join(cron.split()),
            timezone="UTC" if cron is not None and timezone is None else timezone,
            every=None if every is None else checked_interval(name, every),
            missed=missed,
        )
        try:
            timetable = timetable_of(definition)
        except ConfigurationError as error:
            raise ConfigurationError(f"Schedule {name!r}: {error}") from error
        now = datetime.now(UTC)
        if timetable.after(now) is None:
            raise ConfigurationError(
                f"Schedule {name!r}: the cron expression {cron!r} never fires."
            )
        declared = Declared(name, kind, text, definition, timetable, user_id, chosen)
        check_submission(declared, now)
        self.declared_schedules[name] = declared

    async def schedules(self) -> Sequence[Schedule]:
        """Return all schedules of the store, by name, with their next and latest tick.

        Those that only other processes declare are included, except if the store cannot list jobs.
        """
        runtime = self._running
        await runtime.schedules.begin()
        return await read_schedules(runtime.repository, self.declared_schedules)

    async def enqueue_ticks(self) -> Sequence[Job]:
        """Enqueue the jobs of due ticks and return them; an open queue does so itself.

        In a block of `using`, only this call does. The first one begins the declared schedules, as
        `schedules` does: their ticks come after it.
        """
        return await self._running.schedules.look()

    async def pause_schedule(self, name: str, /) -> None:
        """Let a schedule enqueue no jobs until it is resumed, also after a restart.

        Ticks in between are missed. Raises `UnknownSchedule`.
        """
        runtime = self._running
        await runtime.schedules.begin()
        await set_paused(runtime.repository, name, paused=True)

    async def resume_schedule(self, name: str, /) -> None:
        """Let a paused schedule go on; raise `UnknownSchedule`.

        Its `missed` decides whether a job is enqueued for the ticks that it missed.
        """
        runtime = self._running
        await set_paused(runtime.repository, name, paused=False)
        runtime.schedules.wake()

    async def run_schedule_now(self, name: str, /) -> JobHandle[Any]:
        """Enqueue a job of a schedule now, even if the schedule is paused; return its handle.

        The job's `scheduled_at` is the time of the call. Neither the next tick nor the latest one
        changes. Raises `UnknownSchedule`, and `ConfigurationError` if only other processes declare
        the schedule.
        """
        runtime = self._running
        declared = self.declared_schedules.get(name)
        if declared is None:
            if await has_record(runtime.repository, name):
                raise ConfigurationError(
                    f"Schedule {name!r} is not declared in this process: run it in a process that "
                    "declares it."
                )
            raise UnknownSchedule(name)
        job = await runtime.submit_scheduled(declared, Tick(runtime.repository.now()))
        return JobHandle(self, job, declared.kind)

    async def remove_schedule(self, name: str, /) -> None:
        """Forget a schedule that no code declares any more; its jobs stay.

        Raises `UnknownSchedule`, and `ConfigurationError` for a schedule that this process
        declares. If another process declares it, that process stores it again.
        """
        if name in self.declared_schedules:
            raise ConfigurationError(
                f"Schedule {name!r} is declared in this process: remove its declaration first."
            )
        await remove_record(self._running.repository, name)

    def _check_callback(self, name: str, options: EnqueueOptions) -> None:
        if options.callback_url is None:
            return
        if self._callbacks is None:
            raise ConfigurationError(
                f"Schedule {name!r} has a callback URL: set `callbacks` of AsyncJobs."
            )
        try:
            self._callbacks.check(options.callback_url)
        except RequestRejected as error:
            raise ConfigurationError(f"Schedule {name!r}: {error}") from error

    def _checked_payload(
        self, name: str, handler: JobType[Any, Any] | str, payload: object
    ) -> tuple[JobType[Any, Any], bytes]:
        try:
            kind: JobType[Any, Any] = self.registry.find(handler)
            return kind, kind.dump_payload(payload)
        except (UnknownType, InvalidPayload, PayloadTooLarge) as error:
            raise ConfigurationError(f"Schedule {name!r}: {error}") from error


def _check_timing(name: str, cron: str | None, every: Seconds | None, timezone: str | None) -> None:
    if (cron is None) is (every is None):
        raise ConfigurationError(
            f'Schedule {name!r} needs either cron="0 3 * * *" or every=timedelta(...).'
        )
    for option, value in (("cron", cron), ("timezone", timezone)):
        if value is not None and not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # any caller
            raise ConfigurationError(f"Schedule {name!r}: {option} must be a string.")
    if timezone is not None and cron is None:
        raise ConfigurationError(
            f"Schedule {name!r}: a time zone belongs to cron; intervals have none."
        )

"""Calls what an application wants to be called when something happens to a job.

Every write of this process passes `HookRunner.tell`, which logs it. Observers are called at once,
and must return at once; hooks are called later, by tasks beside those that do the work, so that
none delays a write, a handler or another hook.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core.events import Event, Transition
from asyncjobs.core.job import Job
from asyncjobs.errors import ConfigurationError
from asyncjobs.execution.tasks import apart, call_apart
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.protocols import Spans
from asyncjobs.records.change_feed import Signal
from asyncjobs.records.logging import (
    log,
    log_fields,
    log_transition,
    set_current_job,
    working_on,
)

#: What `AsyncJobs.on` takes: an `async def`, which is awaited, or a `def`, which runs in a thread.
Hook = Callable[[Transition], object]

# What one hook may be behind: jobs hold their payloads and results.
_MOST_WAITING = 1000


class NoSpans:
    """Passes on what there is."""

    def submitting(
        self, _kind: str, _queue: str, traceparent: str | None, /
    ) -> AbstractContextManager[str | None]:
        return nullcontext(traceparent)

    def attempting(
        self, job: Job, _told_to_stop: Callable[[], str | None], /
    ) -> AbstractContextManager[str | None]:
        return nullcontext(job.traceparent)


class Hooks:
    """What is to be called, as the application has said it; belongs to no process."""

    def __init__(self) -> None:
        self._hooks: dict[Event, list[Hook]] = {event: [] for event in Event}
        #: Called at each transition, in the task that made it.
        self.observers: list[Callable[[Transition], None]] = []
        #: Loops that run beside those of the engine while the queue is open.
        self.loops: list[Callable[[], Awaitable[None]]] = []
        self.spans: Spans = NoSpans()

    def add(self, event: str, hook: Hook) -> None:
        """Call the hook at each such event; raise `ConfigurationError` where there is none."""
        if event not in self._hooks:
            known = ", ".join(Event)
            raise ConfigurationError(f"There is no event {str(event)!r} (known: {known}).")
        self._hooks[Event(event)].append(hook)

    def of(self, event: Event) -> Sequence[Hook]:
        """Return what is called at an event."""
        return self._hooks[event]


class HookRunner:
    """Tells observers and hooks what this process has written."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._lines: dict[Hook, _HookQueue] = {}
        self._new = Signal()

    def tell(self, transition: Transition) -> None:
        """Log a transition and call what is to be called; never raises, never waits."""
        log_transition(transition)
        for observer in self._hooks.observers:
            call_apart(partial(_observe, observer, transition))
        for hook in self._hooks.of(transition.event):
            line = self._lines.get(hook)
            if line is None:
                line = self._lines[hook] = _HookQueue(hook)
                self._new.set()
            line.put(transition)

    async def run(self) -> None:
        """Call hooks until cancelled."""
        begun: set[_HookQueue] = set()
        async with anyio.create_task_group() as tasks:
            while True:
                for line in tuple(self._lines.values()):
                    if line not in begun:
                        begun.add(line)
                        tasks.start_soon(line.run, tasks)
                await self._new.wait()

    async def finish(self, seconds: float) -> None:
        """Wait until all hooks have been called, but no longer than that."""
        with anyio.move_on_after(seconds):
            while busy := [line for line in self._lines.values() if line.behind]:
                await busy[0].idle.wait()
        for line in self._lines.values():
            if line.behind:
                log.warning("%s was not told of %d transitions", line.name, line.behind)


def _observe(observer: Callable[[Transition], None], transition: Transition) -> None:
    try:
        observer(transition)
    except BaseException:  # an application's; it goes to the log
        log.exception("An observer raised", extra=log_fields(transition.job))


class _HookQueue:
    """One hook, and what it is still to be told of: one transition after the other, in order."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        call = getattr(hook, "__call__", hook)  # noqa: B004  # an object may have an async one
        self._asynchronous = any(map(inspect.iscoroutinefunction, (hook, call)))
        # Filled on the event loop, emptied there or in a thread; the first is the present one.
        self._waiting: deque[Transition] = deque()
        self._signal = Signal()
        self._missed = 0
        self.idle = anyio.Event()

    @property
    def behind(self) -> int:
        """How many transitions it has not dealt with, the present one included."""
        return len(self._waiting)

    @property
    def name(self) -> str:
        """How it is called in logs."""
        return f"The hook {getattr(self._hook, '__qualname__', repr(self._hook))}"

    def put(self, transition: Transition) -> None:
        if self.behind < _MOST_WAITING and not self._missed:
            self._waiting.append(transition)
            self._signal.set()
            return
        if not self._missed:
            log.warning(
                "%s is %d transitions behind: it misses more until it has caught up",
                self.name,
                _MOST_WAITING,
            )
        self._missed += 1

    async def run(self, tasks: TaskGroup) -> None:
        while True:
            while self._waiting:
                await self._call(tasks)
            if self._missed:
                log.warning("%s has missed %d transitions", self.name, self._missed)
                self._missed = 0
            done, self.idle = self.idle, anyio.Event()
            done.set()
            await self._signal.wait()

    async def _call(self, tasks: TaskGroup) -> None:
        """Tell of the first that waits, or in a thread of all that wait."""
        transition = self._waiting[0]
        if self._asynchronous:
            await self._await(transition, lambda: self._hook(transition), tasks)
            self._waiting.popleft()
            return
        left = await in_new_thread(self._call_in_thread, name="asyncjobs hook").result()
        if left is not None:
            await self._await(*left, tasks)
            self._waiting.popleft()

    def _call_in_thread(self) -> tuple[Transition, Callable[[], Any]] | None:
        """Tell of one after the other; return what is left to be awaited."""
        while self._waiting:
            transition = self._waiting[0]
            value: object = None
            with working_on(transition.job):
                try:
                    value = self._hook(transition)
                except BaseException as error:  # noqa: BLE001  # an application's; to the log
                    self._complain(transition, error)
            if inspect.isawaitable(value):
                return transition, lambda: value  # noqa: B023  # the loop ends here
            self._waiting.popleft()
        return None

    async def _await(
        self, transition: Transition, begin: Callable[[], Any], tasks: TaskGroup
    ) -> None:
        """Await the hook in a task of its own, where it can harm nothing else."""
        context = copy_context()
        context.run(set_current_job, transition.job)
        try:
            await apart(begin, tasks, name="asyncjobs hook", context=context)
        except Exception as error:  # noqa: BLE001  # an application's; it goes to the log
            self._complain(transition, error)

    def _complain(self, transition: Transition, error: BaseException) -> None:
        fields = log_fields(transition.job)
        log.error("%s raised at %r", self.name, str(transition.event), exc_info=error, extra=fields)

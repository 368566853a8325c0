"""Calls an application's hooks when a job changes.

`HookRunner.notify` logs every event of this process. It calls observers at once, and they must
return at once. Hooks are called later, each in its own task, so that none delays a write, a handler
or another hook.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import copy_context
from typing import Any

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core.events import Event, Transition
from asyncjobs.core.job import Job
from asyncjobs.errors import ConfigurationError
from asyncjobs.execution.tasks import apart
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.protocols import Spans
from asyncjobs.records.logging import (
    is_logged,
    log,
    log_fields,
    log_transition,
    set_current_job,
    working_on,
)
from asyncjobs.records.waiting import Signal

#: What `AsyncJobs.on` takes: an `async def`, which is awaited, or a `def`, which runs in a thread.
Hook = Callable[[Transition], object]

# How many events a hook may fall behind. Each event holds its job with payload and result.
_MAX_WAITING = 1000


class NoSpans:
    """The spans of a queue without a tracer: they pass the given `traceparent` on."""

    def submitting(
        self, _kind: str, _queue: str, traceparent: str | None, /
    ) -> AbstractContextManager[str | None]:
        return nullcontext(traceparent)

    def attempting(
        self, job: Job, _stop_reason: Callable[[], str | None], /
    ) -> AbstractContextManager[str | None]:
        return nullcontext(job.traceparent)


class Hooks:
    """The hooks, observers, loops and spans that the application registered on a queue."""

    def __init__(self) -> None:
        self._hooks: dict[Event, list[Hook]] = {event: [] for event in Event}
        #: Called at each event, in the task that wrote the change.
        self.observers: list[Callable[[Transition], None]] = []
        #: Loops that run beside the runtime's own while the queue is open.
        self.loops: list[Callable[[], Awaitable[None]]] = []
        self.spans: Spans = NoSpans()

    def add(self, event: str, hook: Hook) -> None:
        """Register a hook for an event; raise `ConfigurationError` for an unknown event."""
        if event not in self._hooks:
            known = ", ".join(Event)
            raise ConfigurationError(f"There is no event {str(event)!r} (known: {known}).")
        self._hooks[Event(event)].append(hook)

    def of(self, event: Event) -> Sequence[Hook]:
        """Return the hooks of an event."""
        return self._hooks[event]


class HookRunner:
    """Calls observers and hooks for the events of this process."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._queues: dict[Hook, _HookQueue] = {}
        self._new = Signal()

    def notify(self, transition: Transition) -> None:
        """Log an event, call the observers, queue it for its hooks. Never raises or waits."""
        log_transition(transition)
        for observer in self._hooks.observers:
            _observe(observer, transition)
        for hook in self._hooks.of(transition.event):
            queue = self._queues.get(hook)
            if queue is None:
                queue = self._queues[hook] = _HookQueue(hook)
                self._new.set()
            queue.put(transition)

    def listens(self, event: Event) -> bool:
        """Return whether `notify` has anything to do for an event of that kind."""
        hooks = self._hooks
        return bool(hooks.observers or hooks.of(event)) or is_logged(event)

    def room(self, event: Event) -> int:
        """Return how many events of a kind may come at once without a hook missing any.

        Half of the queue is reserved for other events, which cannot be delayed.
        """
        queues = [self._queues.get(hook) for hook in self._hooks.of(event)]
        behind = max((queue.behind for queue in queues if queue is not None), default=0)
        return max(0, _MAX_WAITING // 2 - behind)

    async def run(self) -> None:
        """Call hooks until cancelled."""
        started: set[_HookQueue] = set()
        async with anyio.create_task_group() as tasks:
            while True:
                for queue in tuple(self._queues.values()):
                    if queue not in started:
                        started.add(queue)
                        tasks.start_soon(queue.run, tasks)
                await self._new.wait()

    async def finish(self, seconds: float) -> None:
        """Wait until all hooks have been called, at most for `seconds`."""
        with anyio.move_on_after(seconds):
            while busy := [queue for queue in self._queues.values() if queue.behind]:
                await busy[0].idle.wait()
        for queue in self._queues.values():
            if queue.behind:
                log.warning("%s was not called for %d events", queue.name, queue.behind)


def _observe(observer: Callable[[Transition], None], transition: Transition) -> None:
    try:
        observer(transition)
    except BaseException:  # raised by the application's code; logged
        log.exception("An observer raised an exception", extra=log_fields(transition.job))


def _name_of(hook: Hook) -> str:
    with suppress(BaseException):  # an application's `__repr__` may raise
        return str(getattr(hook, "__qualname__", None) or repr(hook))
    return type(hook).__qualname__


class _HookQueue:
    """One hook and the events that it has yet to handle, in order and one after the other."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        call = getattr(hook, "__call__", hook)  # noqa: B004  # an object may have an async one
        self._asynchronous = any(map(inspect.iscoroutinefunction, (hook, call)))
        # Filled on the event loop, emptied there or in a thread; the first event is being handled.
        self._waiting: deque[Transition] = deque()
        self._signal = Signal()
        self._missed = 0
        self.idle = anyio.Event()

    @property
    def behind(self) -> int:
        """How many events it has not handled yet, including the current one."""
        return len(self._waiting)

    @property
    def name(self) -> str:
        """The name in log messages."""
        return f"The hook {_name_of(self._hook)}"

    def put(self, transition: Transition) -> None:
        if self.behind < _MAX_WAITING and not self._missed:
            self._waiting.append(transition)
            self._signal.set()
            return
        if not self._missed:
            log.warning(
                "%s is %d events behind: it misses further events until it has caught up",
                self.name,
                _MAX_WAITING,
            )
        self._missed += 1

    async def run(self, tasks: TaskGroup) -> None:
        while True:
            while self._waiting:
                await self._call(tasks)
            if self._missed:
                log.warning("%s has missed %d events", self.name, self._missed)
                self._missed = 0
            done, self.idle = self.idle, anyio.Event()
            done.set()
            await self._signal.wait()

    async def _call(self, tasks: TaskGroup) -> None:
        """Call an async hook for the first event, or a plain one in a thread for all of them."""
        transition = self._waiting[0]
        if self._asynchronous:
            await self._await(transition, lambda: self._hook(transition), tasks)
            self._waiting.popleft()
            return
        awaitable = await in_new_thread(self._call_in_thread, name="asyncjobs hook").result()
        if awaitable is not None:
            await self._await(*awaitable, tasks)
            self._waiting.popleft()

    def _call_in_thread(self) -> tuple[Transition, Callable[[], Any]] | None:
        """Call the hook for each event; return an event early if its hook returned an awaitable."""
        while self._waiting:
            transition = self._waiting[0]
            value: Any = None
            awaits = False
            with working_on(transition.job):
                try:
                    value = self._hook(transition)
                    awaits = inspect.isawaitable(value)  # may run the value's own code
                except BaseException as error:  # noqa: BLE001  # raised by the application; logged
                    self._log_error(transition, error)
            if awaits:
                return transition, lambda: value  # noqa: B023  # the loop ends here
            self._waiting.popleft()
        return None

    async def _await(
        self, transition: Transition, begin: Callable[[], Any], tasks: TaskGroup
    ) -> None:
        """Await the hook in a task of its own, so that it cannot affect other code."""
        context = copy_context()
        context.run(set_current_job, transition.job)
        try:
            await apart(begin, tasks, name="asyncjobs hook", context=context)
        except Exception as error:  # noqa: BLE001  # raised by the application; logged
            self._log_error(transition, error)

    def _log_error(self, transition: Transition, error: BaseException) -> None:
        fields = log_fields(transition.job)
        log.error("%s raised at %r", self.name, str(transition.event), exc_info=error, extra=fields)

"""The kinds of misbehaving handlers in the matrix, and healthy neighbours.

A test adds them to its queue (`register`). Worker processes load `jobs`, and child processes import
the handlers from here.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.lowlevel

from asyncjobs import AsyncJobs, JobCancelled, JobContext, JobFailed, Policy, Settings

#: Where handlers run. In a process, too, they are `async def` or `def`.
ASYNC = ("async", "async process")
DEF = ("thread", "process")
PROCESS = ("process", "async process")
ANYWHERE = (*ASYNC, *DEF)

LOGGER = logging.getLogger("asyncjobs")

HUGE = 5_000_000


@dataclass(frozen=True)
class Kind:
    """One kind of misbehaviour: where it runs, and the final status or error code of its job.

    `limited` is whether its timeout ends it.
    """

    function: Callable[[JobContext], Any]
    forms: tuple[str, ...]
    ends: str
    limited: bool

    @property
    def name(self) -> str:
        return self.function.__name__


KINDS: dict[str, Kind] = {}

#: These end the process, so they run in worker processes only.
DEADLY: dict[str, Kind] = {}

Function = Callable[[JobContext], Any]


def kind(
    ends: str,
    forms: tuple[str, ...] = ANYWHERE,
    *,
    limited: bool = False,
    into: dict[str, Kind] = KINDS,
) -> Callable[[Function], Function]:
    def register_kind(function: Function) -> Function:
        into[function.__name__] = Kind(function, forms, ends, limited)
        return function

    return register_kind


# errors


class WithoutInit(JobFailed):
    def __init__(self, code: int) -> None:  # a frequent mistake: the base class is not called
        self.number = code


class BrokenMessage(JobFailed):
    @property
    def message(self) -> str:
        raise LookupError("no message")

    @message.setter
    def message(self, _value: str) -> None:
        return


class InterruptingMessage(BrokenMessage):
    @property
    def message(self) -> str:
        raise KeyboardInterrupt

    @message.setter
    def message(self, _value: str) -> None:
        return


class Unshowable(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


class InterruptingText(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)

    __repr__ = __str__


class Nameless(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise LookupError("no class")


@kind("internal_error")
def fails_without_init(_job: JobContext) -> NoReturn:
    raise WithoutInit(3)


@kind("internal_error")
def fails_with_a_broken_message(_job: JobContext) -> NoReturn:
    raise BrokenMessage("x")


@kind("internal_error")
def fails_with_an_interrupting_message(_job: JobContext) -> NoReturn:
    raise InterruptingMessage("x")


@kind("internal_error")
def raises_an_unshowable_error(_job: JobContext) -> NoReturn:
    raise Unshowable


@kind("internal_error")
def raises_an_error_whose_text_exits(_job: JobContext) -> NoReturn:
    raise InterruptingText


@kind("internal_error")
def raises_an_error_without_a_class(_job: JobContext) -> NoReturn:
    raise Nameless


@kind("internal_error")
def raises_keyboard_interrupt(_job: JobContext) -> NoReturn:
    raise KeyboardInterrupt


@kind("internal_error")
def raises_system_exit(_job: JobContext) -> NoReturn:
    sys.exit(3)


@kind("internal_error")
def raises_generator_exit(_job: JobContext) -> NoReturn:
    raise GeneratorExit


@kind("internal_error")
def raises_a_cancellation(_job: JobContext) -> NoReturn:
    raise asyncio.CancelledError


@kind("internal_error")
def raises_job_cancelled(job: JobContext) -> NoReturn:
    raise JobCancelled(job.id)


@kind("internal_error")
def raises_stop_iteration(_job: JobContext) -> NoReturn:
    raise StopIteration


@kind("internal_error")
def raises_a_group_of_interrupts(_job: JobContext) -> NoReturn:
    raise BaseExceptionGroup("two", [KeyboardInterrupt(), SystemExit()])


# texts and progress


class Text:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        raise self._error


class Items(list[int]):
    def __init__(self, length: int | Exception) -> None:
        super().__init__([1, 2])
        self._length = length

    def __len__(self) -> int:
        if isinstance(self._length, Exception):
            raise self._length
        return self._length


@kind("completed")
def reports_an_unshowable_text(job: JobContext) -> int:
    text: Any = Text(LookupError())
    job.progress(1, text, unit=text)
    return 1


@kind("completed")
def reports_an_interrupting_text(job: JobContext) -> int:
    text: Any = Text(KeyboardInterrupt())
    job.progress(1, text)
    return 1


@kind("completed")
def tracks_what_has_a_broken_length(job: JobContext) -> int:
    return sum(job.track(Items(LookupError())))


@kind("completed")
def tracks_what_has_a_huge_length(job: JobContext) -> int:
    return sum(job.track(Items(2**70)))


@kind("completed")
def reports_a_huge_text(job: JobContext) -> int:
    job.progress(1, "m" * HUGE, unit="u" * HUGE)
    return 1


@kind("job_failed")
def fails_with_a_huge_text(_job: JobContext) -> NoReturn:
    raise JobFailed("m" * HUGE)


@kind("internal_error")
def raises_a_huge_text(_job: JobContext) -> NoReturn:
    raise ValueError("m" * HUGE)


# results


@kind("invalid_result")
def returns_nan(_job: JobContext) -> float:
    return math.nan


@kind("invalid_result")
def returns_infinity(_job: JobContext) -> float:
    return -math.inf


@kind("invalid_result")
def returns_an_integer_of_5000_digits(_job: JobContext) -> int:
    return 10**5000


@kind("invalid_result")
def returns_an_object(_job: JobContext) -> object:
    return object()


class BrokenNumber:
    def __float__(self) -> float:
        raise LookupError("no number")

    __int__ = __index__ = __float__


@kind("invalid_result")
def returns_a_broken_number(_job: JobContext) -> object:
    return BrokenNumber()


# logging


class BrokenFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        raise LookupError("filter")


class BrokenHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        raise KeyboardInterrupt


@kind("internal_error")
def breaks_the_log_by_a_filter(_job: JobContext) -> NoReturn:
    LOGGER.addFilter(BrokenFilter())
    raise ValueError


@kind("internal_error")
def breaks_the_log_by_a_handler(_job: JobContext) -> NoReturn:
    LOGGER.addHandler(BrokenHandler())
    raise ValueError


def mend_the_log() -> None:
    """Undo the changes of the kinds above to the logging of this process."""
    for one in [one for one in LOGGER.filters if isinstance(one, BrokenFilter)]:
        LOGGER.removeFilter(one)
    for handler in [one for one in LOGGER.handlers if isinstance(one, BrokenHandler)]:
        LOGGER.removeHandler(handler)


# event loops and threads


@kind("internal_error")
def enqueues_in_another_event_loop(_job: JobContext) -> int:
    errors: list[BaseException] = []

    def enqueue() -> None:
        try:
            asyncio.run(_enqueue_healthy())
        except BaseException as error:  # noqa: BLE001  # raised below
            errors.append(error)

    thread = threading.Thread(target=enqueue)
    thread.start()
    thread.join()
    raise errors[0]


@kind("internal_error", DEF)
def runs_an_event_loop_that_enqueues(_job: JobContext) -> int:
    asyncio.run(_enqueue_healthy())
    return 1


async def _enqueue_healthy() -> None:
    await used.enqueue("healthy", None)


async def _numbers_within_a_scope() -> AsyncGenerator[int]:
    with anyio.fail_after(60):
        for number in range(3):
            yield number


@kind("completed", ASYNC)
async def leaves_a_scope_by_break(_job: JobContext) -> int:
    async for number in _numbers_within_a_scope():
        return number
    return 1


@kind("completed", ASYNC)
async def leaves_a_task_group_entered(_job: JobContext) -> int:
    await AsyncExitStack().enter_async_context(anyio.create_task_group())
    return 1


@kind("completed", ASYNC)
async def leaves_a_cancelled_scope_entered(_job: JobContext) -> int:
    anyio.CancelScope().__enter__().cancel()
    return 1


@kind("completed", ASYNC)
async def leaves_a_timeout_entered(_job: JobContext) -> int:
    await AsyncExitStack().enter_async_context(asyncio.timeout(0.01))
    return 1


@kind("internal_error", ASYNC)
async def cancels_its_task_and_awaits(_job: JobContext) -> int:
    _own_task().cancel()
    await asyncio.sleep(60)
    return 1


@kind("completed", ASYNC)
async def cancels_its_task_and_returns(_job: JobContext) -> int:
    _own_task().cancel()
    return 1


@kind("internal_error", ASYNC)
async def cancels_its_task_a_little_later(_job: JobContext) -> int:
    asyncio.get_running_loop().call_later(0.01, _own_task().cancel)
    await asyncio.sleep(60)
    return 1


@kind("completed", ASYNC)
async def cancels_its_task_after_its_end(_job: JobContext) -> int:
    asyncio.get_running_loop().call_later(0.01, _own_task().cancel)
    return 1


@kind("internal_error", ASYNC)
async def is_cancelled_by_its_child(_job: JobContext) -> int:
    task = _own_task()

    async def cancel() -> None:
        task.cancel()

    child = asyncio.create_task(cancel())
    await asyncio.sleep(60)
    await child
    return 1


def _own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


class Garbage:
    def __await__(self) -> Generator[Any, Any, None]:
        yield "no future"


@kind("internal_error", ASYNC)
async def awaits_garbage(_job: JobContext) -> int:
    await Garbage()
    return 1


@kind("internal_error", ASYNC)
async def closes_the_event_loop(_job: JobContext) -> int:
    asyncio.get_running_loop().close()
    return 1


# stop requests


@kind("timeout", ASYNC, limited=True)
async def swallows_one_cancellation(_job: JobContext) -> int:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(600)
    await asyncio.sleep(600)
    return 1


@kind("timeout", ASYNC, limited=True)
async def swallows_cancellations(_job: JobContext) -> int:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(600)


@kind("timeout", ASYNC, limited=True)
async def swallows_everything(_job: JobContext) -> int:
    while True:
        with suppress(BaseException):
            await asyncio.sleep(600)


@kind("timeout", DEF, limited=True)
def works_on_in_spite_of_its_timeout(job: JobContext) -> int:
    give_up_at = time.monotonic() + 60
    while not job.cancelled and time.monotonic() < give_up_at:
        with suppress(JobCancelled):
            job.check()
            time.sleep(0.01)
    time.sleep(0.5)
    return 1


# processes


@kind("completed", PROCESS)
def terminates_its_process(_job: JobContext) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return 1


@kind("completed", PROCESS)
def terminates_a_child(_job: JobContext) -> int:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    child.terminate()
    assert child.wait() == -signal.SIGTERM
    return 1


@kind("completed", PROCESS)
def terminates_a_fork(_job: JobContext) -> int:
    """Terminate a fork at once: the signal may arrive before the fork has run a line."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join()
    return process.exitcode == -signal.SIGTERM


@kind("worker_lost", PROCESS)
def exits_without_cleaning_up(_job: JobContext) -> NoReturn:
    os._exit(5)


@kind("worker_lost", PROCESS)
def crashes(_job: JobContext) -> int:
    return len(ctypes.string_at(0))


@kind("worker_lost", ("async",), into=DEADLY)
def exits_with_the_worker(_job: JobContext) -> NoReturn:
    os._exit(5)


@kind("worker_lost", ("async", "thread"), into=DEADLY)
def crashes_with_the_worker(_job: JobContext) -> int:
    return len(ctypes.string_at(0))


@kind("worker_lost", ("async",), into=DEADLY)
async def stops_the_event_loop(_job: JobContext) -> int:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(600)
    return 1


@kind("", ("async",), into=DEADLY)
async def terminates_the_worker(_job: JobContext) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(600)
    return 1


@kind("", ("async",), into=DEADLY)
async def leaves_a_thread(_job: JobContext) -> int:
    threading.Thread(target=time.sleep, args=(600,)).start()
    await asyncio.sleep(600)
    return 1


@kind("", ("thread",), into=DEADLY)
def holds_its_thread(_job: JobContext) -> None:
    time.sleep(600)


@kind("", ("async",), into=DEADLY)
def never_yields(_job: JobContext) -> NoReturn:
    while True:
        pass


# handlers


async def on_the_loop(name: str, job: JobContext) -> int | float:
    value: Any = {**KINDS, **DEADLY}[name].function(job)
    result: int | float = await value if inspect.isawaitable(value) else value
    return result


def off_the_loop(name: str, job: JobContext) -> int | float:
    value: int | float = {**KINDS, **DEADLY}[name].function(job)
    return value


async def neighbour(go_on: Path, _job: JobContext) -> str:
    """Run until the file is there."""
    while not go_on.exists():  # noqa: ASYNC110
        await anyio.sleep(0.01)
    return "done"


def neighbour_in_thread(go_on: Path, job: JobContext) -> str:
    while not go_on.exists():
        job.check()
        time.sleep(0.01)
    return "done"


async def healthy(_none: None, _job: JobContext) -> int:
    """Return the process; repair its logging."""
    mend_the_log()
    await anyio.lowlevel.checkpoint()
    return os.getpid()


def healthy_in_process(_none: None, _job: JobContext) -> int:
    mend_the_log()
    return os.getpid()


async def census(_none: None, _job: JobContext) -> list[str]:
    """Return this process's tasks, threads and open files."""
    return whats_there()


def whats_there() -> list[str]:
    tasks = [f"task {task.get_name()}" for task in asyncio.all_tasks()]
    threads = [f"thread {one.name}" for one in threading.enumerate()]
    return sorted([*tasks, *threads, *open_files()])


def open_files() -> list[str]:
    found: list[str] = []
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing itself opened this one
            found.append(f"file {file.name} {file.readlink()}")
    return found


def register(jobs: AsyncJobs, used_here: AsyncJobs | None = None) -> AsyncJobs:
    """Register the handlers; the kinds that enqueue use that queue, or `used_here`."""
    global used  # noqa: PLW0603  # handlers of a process have one queue
    used = used_here or jobs
    for form, function in (("async", on_the_loop), ("thread", off_the_loop)):
        jobs.handler(form)(function)
        jobs.handler(f"{form} limited", timeout=0.5)(function)
    for form, function in (("async process", on_the_loop), ("process", off_the_loop)):
        jobs.handler(form, run_in="process")(function)
        jobs.handler(f"{form} limited", run_in="process", timeout=3)(function)
    jobs.handler("few releases", policy=Policy(max_releases=2))(on_the_loop)
    jobs.handler("neighbour")(neighbour)
    jobs.handler("neighbour in thread")(neighbour_in_thread)
    jobs.handler("healthy")(healthy)
    jobs.handler("healthy in process", run_in="process")(healthy_in_process)
    jobs.handler("census")(census)
    return jobs


def handler_name(one: Kind, form: str) -> str:
    return f"{form} limited" if one.limited else form


#: The queue of a worker process, and of a child process, in which it is not open.
jobs = AsyncJobs(
    os.environ.get("JOBS", "memory://"),
    dispatcher="worker",
    settings=Settings(
        poll_interval=0.1,
        sweep_interval=0.5,
        lease=float(os.environ.get("LEASE", "30")),
        redelivery=float(os.environ.get("LEASE", "30")),
        grace=float(os.environ.get("GRACE", "1")),
    ),
)
used: AsyncJobs = jobs
register(jobs)

"""A misbehaving hook or observer harms no job and no other hook."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest

from asyncjobs import JobContext, JobStatus, Transition
from tests.queues import Make, finished
from tests.waiting import until

from .matrix import PATIENT, nothing_left
from .misbehaviour import KINDS

pytestmark = [
    pytest.mark.anyio,
    # The interpreter reports a coroutine that was closed and goes on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: The kinds that do not use the job.
RAISING = [name for name in KINDS if name.startswith(("raises_", "fails_", "breaks_"))]
AWAITING = [
    *(
        name
        for name in KINDS
        if name.startswith(("leaves_", "cancels_", "is_cancelled", "awaits_"))
    ),
    "closes_the_event_loop",
    "swallows_one_cancellation",
    "swallows_cancellations",
    "swallows_everything",
]

RAISING.remove("raises_job_cancelled")
OTHER_LOOP = "enqueues_in_another_event_loop"


def misbehaving(kinds: ModuleType, name: str, how: str) -> Callable[[Transition], Any]:
    """Make a hook from a kind of handler that does not use its job."""
    function = kinds.KINDS[name].function
    no_job: Any = None

    async def hook(_transition: Transition) -> None:
        value = function(no_job)
        if value is not None:
            await value

    def plain(_transition: Transition) -> None:
        function(no_job)

    return hook if how == "async" else plain


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *(("async", name) for name in [*RAISING, *AWAITING, OTHER_LOOP]),
        *(("def", name) for name in [*RAISING, OTHER_LOOP]),
        *(("observer", name) for name in [*RAISING, OTHER_LOOP]),
    ],
)
async def test_a_misbehaving_hook_harms_no_job_and_no_other_hook(
    make: Make, kinds: ModuleType, how: str, name: str
) -> None:
    asyncio.get_running_loop().set_exception_handler(None)
    jobs = kinds.register(make(settings=PATIENT))
    bad = misbehaving(kinds, name, how)
    seen: list[str] = []

    async def good(transition: Transition) -> None:
        seen.append(transition.event.value)

    if how == "observer":
        jobs.hooks.observers.append(bad)
    for event in ("enqueued", "started", "completed"):
        if how != "observer":
            jobs.on(event, bad)
        jobs.on(event, good)
    async with nothing_left(), jobs:
        for _ in range(2):
            done = await finished(jobs, "healthy")
            assert (done.status, done.attempt) == (JobStatus.COMPLETED, 1)
        await until(lambda: seen == ["enqueued", "started", "completed"] * 2)
        kinds.mend_the_log()


class Hidden:
    """Raises when it is called, and when its repr is requested."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self, _transition: Transition) -> object:
        raise self._error

    def __repr__(self) -> str:
        raise self._error


class Nameless:
    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise LookupError("no class")


class BrokenHandler(logging.Handler):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        raise self._error


#: New for each test: a traceback grows with each raise.
ENDS = {
    "Exception": LookupError,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
}


def raising(how: str, error: BaseException) -> Any:
    """Make a hook or an observer that raises in this way."""

    async def in_task(_transition: Transition) -> None:
        raise error

    def plain(_transition: Transition) -> object:
        raise error

    def awaitable(transition: Transition) -> Any:
        return in_task(transition)

    def nameless(_transition: Transition) -> object:
        return Nameless()

    ways: dict[str, Any] = {
        "async": in_task,
        "def": plain,
        "awaitable": awaitable,
        "hidden": Hidden(error),
        "nameless": nameless,
        "observer": plain,
        "hidden observer": Hidden(error),
        "log handler": plain,
    }
    return ways[how]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "how",
    [
        *("async", "def", "awaitable", "hidden", "nameless"),
        *("observer", "hidden observer", "log handler"),
    ],
)
async def test_any_exception_of_a_hook_only_ends_its_own_call(
    make: Make, how: str, end: str
) -> None:
    jobs = make(settings=PATIENT)
    bad = raising(how, ENDS[end]())
    seen: list[str] = []

    @jobs.handler("work")
    async def work(_none: None, _job: JobContext) -> str:
        return "done"

    async def good(transition: Transition) -> None:
        seen.append(transition.event.value)

    logger, handler = logging.getLogger("asyncjobs"), BrokenHandler(ENDS[end]())
    if how == "log handler":
        logger.addHandler(handler)
    try:
        async with jobs:
            if how.endswith("observer"):
                jobs.hooks.observers.append(bad)
            for event in ("enqueued", "started", "completed"):
                if not how.endswith("observer"):
                    jobs.on(event, bad)
                jobs.on(event, good)
            for _ in range(2):
                done = await finished(jobs, work)
                assert (done.result, done.attempt) == ("done", 1)
            await until(lambda: seen == ["enqueued", "started", "completed"] * 2)
    finally:
        logger.removeHandler(handler)


async def test_a_hook_that_never_ends_does_not_keep_the_queue_open(make: Make) -> None:
    jobs = make(settings=PATIENT)
    let_go = threading.Event()

    @jobs.handler("work")
    async def work(_none: None, _job: JobContext) -> None: ...

    def endless(_transition: Transition) -> None:
        let_go.wait(60)

    async def endless_task(_transition: Transition) -> None:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    jobs.on("completed", endless)
    jobs.on("completed", endless_task)
    async with nothing_left():
        async with jobs:
            assert (await finished(jobs, work)).status is JobStatus.COMPLETED
        assert not jobs.is_open
        let_go.set()

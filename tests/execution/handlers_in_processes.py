"""Handlers for the tests of `run_in="process"`: child processes import them from here."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from pathlib import Path
from typing import Annotated

import anyio
import anyio.lowlevel
from fast_depends import Depends
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext, JobFailed, Retry, handler
from asyncjobs.errors import DuplicateFile

#: The tests' queue includes these under other names and limits.
kinds = AsyncJobs("memory://")


class Span(BaseModel):
    """The number of steps, and a folder for traces."""

    steps: int = 1
    folder: Path = Path()


class Unreadable(Exception):
    """An error whose text and notes cannot be read."""

    def __str__(self) -> str:
        raise SystemExit(1)

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise SystemExit(1)


class Unsendable(Exception):
    """An error that another process cannot recreate."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@kinds.handler("square", run_in="process")
def square(number: int, job: JobContext) -> tuple[int, int]:
    logging.getLogger("app").info("squaring %s", number)
    job.progress(50, "half", current=1, total=2)
    return number**2, os.getpid()


@kinds.handler("square later", run_in="process")
async def square_later(number: int, _job: JobContext) -> int:
    await anyio.lowlevel.checkpoint()
    return number**2


@kinds.handler("asleep", run_in="process")
async def asleep(span: Span, _job: JobContext) -> None:
    (span.folder / "began").write_text(str(os.getpid()))
    try:
        await anyio.sleep_forever()
    finally:
        (span.folder / "ended").touch()


@kinds.handler("steps", run_in="process")
def steps(span: Span, job: JobContext) -> None:
    (span.folder / "began").write_text(str(os.getpid()))
    for _ in job.track(range(10**9)):
        time.sleep(0.001)


@kinds.handler("named", run_in="process")
def named(folder: Path, job: JobContext) -> tuple[str | None, int]:
    """Set title and metadata, and again once a file exists."""
    job.set_title("Begun")
    job.set_metadata({"step": 1})
    while not (folder / "go on").exists():
        time.sleep(0.01)
    job.set_title(f"{job.title}, and ended")
    job.set_metadata({"step": len(job.metadata) + 1})
    return job.title, 1


@kinds.handler("stubborn", run_in="process")
def stubborn(span: Span, _job: JobContext) -> None:
    """Sleep, start a child process that sleeps, and ignore stop requests."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (span.folder / "other").write_text(str(sleeper.pid))
    (span.folder / "began").write_text(str(os.getpid()))
    time.sleep(600)


@kinds.handler("stubborn for a while", run_in="process", timeout=0.3)
def stubborn_for_a_while(span: Span, job: JobContext) -> None:
    stubborn(span, job)


@kinds.handler("fails", run_in="process", retry=Retry(max_attempts=5))
def fails(how: str, _job: JobContext) -> int:
    match how:
        case "on purpose":
            raise JobFailed("No such order.", "no_order")
        case "by chance":
            raise LookupError("secret")
        case "unreadable":
            raise Unreadable(lambda: None)
        case "unsendable":
            raise Unsendable(1, 2)
        case "exit":
            sys.exit(3)
        case "text":
            return "many"  # type: ignore[return-value]
        case _:
            os.kill(os.getpid(), signal.SIGKILL)
            return 0


def place(folder: str) -> Path:
    return Path(folder) / "real"


def other_place(folder: str) -> Path:
    return Path(folder) / "fake"


async def trace(place: Annotated[Path, Depends(place)], job: JobContext) -> AsyncGenerator[Path]:
    place.write_text("open")
    yield place
    place.write_text(f"{job.type} closed")


@handler("declared", run_in="process")
async def declared(folder: str, trace: Annotated[Path, Depends(trace)]) -> str:
    return f"{trace.relative_to(folder)} {trace.read_text()}"


@kinds.handler("nothing", run_in="process")
def nothing() -> int:
    return os.getpid()


@kinds.handler("save", run_in="process")
def save(span: Span, job: JobContext) -> str:
    chunks = (b"%d\n" % step for step in range(span.steps))
    saved = job.sync.save_file("steps.csv", chunks)
    try:
        job.sync.save_file("steps.csv", b"again")
    except DuplicateFile:
        return saved.path
    return "saved twice"


@kinds.handler("save later", run_in="process")
async def save_later(span: Span, job: JobContext) -> str:
    async def chunks() -> AsyncGenerator[bytes]:
        for step in range(span.steps):
            await anyio.lowlevel.checkpoint()
            yield b"%d\n" % step

    saved = await job.save_file("steps.csv", chunks())
    return saved.path


@kinds.handler("save for ever", run_in="process")
def save_for_ever(span: Span, job: JobContext) -> None:
    def chunks() -> Generator[bytes]:
        while True:
            yield b"x" * 1_000_000
            (span.folder / "began").write_text("began")

    job.sync.save_file("endless.bin", chunks())


@handler("emits", run_in="process", output=int)
def emits(number: int, job: JobContext) -> int:
    for value in range(number):
        job.emit(value)
    if number < 0:
        job.emit("no number")
    return number


@handler("emits async", run_in="process", output=int)
async def emits_async(number: int, job: JobContext) -> int:
    for value in range(number):
        await job.emit(value)
    return number


@handler("yields", run_in="process")
def yields(number: int) -> Generator[int, None, int]:
    yield from range(number)
    return number


@handler("yields async", run_in="process")
async def yields_async(number: int, job: JobContext) -> AsyncIterator[int]:
    for value in range(number):
        yield value
    job.set_result(number)


@handler("dies once", run_in="process")
def dies_once(number: int, job: JobContext) -> None:
    for value in range(number):
        job.emit(value)
    if job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


emitting = (emits, emits_async, yields, yields_async, dies_once)

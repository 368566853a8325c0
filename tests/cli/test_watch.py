"""`watch`: the progress of jobs, with and without a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import pytest

from asyncjobs import Job, JobStatus, Progress
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Detail
from asyncjobs.protocols import Change, Store
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.cli.conftest import Do, Fill, Made, Shell

pytestmark = pytest.mark.every_store(without="memory")

# Shells ignore SIGINT for background commands, and children inherit that.
MAIN = """
import signal
from asyncjobs.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
WATCH = [sys.executable, "-c", MAIN, "watch", "--every", "0.05"]


async def advance(store: Store, *, job: Job, to: Job) -> None:
    assert list(await store.replace([Change(to, job.revision)])) == [True]


def reported(job: Job, percent: int, message: str) -> Job:
    progress = Progress(percent=percent, detail=Detail(message=message))
    return lifecycle.report(job, progress, token="t")


@contextmanager
def process(command: list[str], out: int = subprocess.PIPE) -> Generator[subprocess.Popen[str]]:
    """Run a command inside the block; kill it afterwards."""
    with subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as started:
        guard = threading.Timer(PATIENCE_SECONDS, started.kill)
        guard.start()
        try:
            yield started
        finally:
            guard.cancel()
            started.kill()


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def test_each_change_is_a_line_until_the_named_jobs_end(
    url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    job = made(JobStatus.PROCESSING)
    fill(url, [job, made(JobStatus.PROCESSING)])
    with process([*WATCH, "--store", url, job.id]) as watching:
        shown = [job.id, "export", "processing"]
        assert line(watching.stdout).split()[1:] == [*shown, "40%", "packing"]
        further = reported(job, 80, "sending")
        do(url, partial(advance, job=job, to=further))
        assert line(watching.stdout).split()[1:] == [*shown, "80%", "sending"]
        done = lifecycle.complete(further, job.created_at, token="t", result=b"1")
        do(url, partial(advance, job=further, to=done))
        assert line(watching.stdout).split()[1:4] == [job.id, "export", "completed"]
        assert watching.wait(30) == 0


def test_until_idle_ends_when_nothing_runs_or_waits(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    fill(url, [made(JobStatus.COMPLETED)])
    assert asyncjobs("watch", "--until-idle", "--store", url).stdout == ""
    job = made(JobStatus.PROCESSING)
    fill(url, [job])
    with process([*WATCH, "--until-idle", "--json", "--store", url]) as watching:
        first = json.loads(line(watching.stdout))
        assert (first["jobId"], first["detail"]["message"]) == (job.id, "packing")
        done = lifecycle.complete(job, job.created_at, token="t", result=b"1")
        do(url, partial(advance, job=job, to=done))
        assert json.loads(line(watching.stdout))["status"] == "completed"
        assert watching.wait(30) == 0


def test_ctrl_c_ends_watch_without_an_error(url: str, fill: Fill, made: Made) -> None:
    fill(url, [made(JobStatus.PROCESSING)])
    with process([*WATCH, "--store", url]) as watching:
        line(watching.stdout)
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=30)
    unexpected = [line for line in errors.splitlines() if "it keeps no log" not in line]
    assert (watching.returncode, unexpected) == (0, [])


def test_an_unknown_job_cannot_be_watched(asyncjobs: Shell, url: str, fill: Fill) -> None:
    fill(url, [])
    assert asyncjobs("watch", "--store", url, "job_x").exit_code == 4


def test_a_terminal_shows_bars_and_keeps_ended_jobs_as_lines(
    url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    job = made(JobStatus.PROCESSING)
    fill(url, [job])
    near, far = pty.openpty()
    with process([*WATCH, "--store", url, job.id], out=far) as watching:
        os.close(far)
        seen = read_until(near, "packing")
        assert "40%" in seen
        done = lifecycle.complete(job, job.created_at, token="t", result=b"1")
        do(url, partial(advance, job=job, to=done))
        read_until(near, "completed")
        # Read from the terminal until the end, or the command blocks.
        drain = threading.Thread(target=read_until, args=(near, None), daemon=True)
        drain.start()
        assert watching.wait(30) == 0
        drain.join(30)
    os.close(near)


def read_until(near: int, wanted: str | None) -> str:
    """Read from a terminal until it shows a text, or to its end for None."""
    seen = ""
    while wanted is None or wanted not in seen:
        try:
            data = os.read(near, 4096)
        except OSError:  # Linux raises this when all writers have closed
            assert wanted is None, seen
            break
        assert data or wanted is None, seen
        if not data:
            break
        seen += data.decode(errors="replace")
    return seen

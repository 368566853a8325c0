"""The command `watch`: the progress of jobs, as live bars or line by line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self, assert_never

import anyio
import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from asyncjobs.cli.output import colour_of, console, listed_document, print_json
from asyncjobs.cli.target import Target, open_repository, run_async, with_target
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.core.printable import plain
from asyncjobs.errors import UnknownJob
from asyncjobs.protocols import Selection
from asyncjobs.records.repository import Repository

# About as many bars as a screen has lines.
_MAX_BARS = 40


@click.command()
@with_target
@click.argument("job_ids", metavar="[JOB_ID]...", nargs=-1)
@click.option("--until-idle", is_flag=True, help="Exit when no job runs or waits.")
@click.option(
    "--every", type=click.FloatRange(min=0.05), default=0.5, show_default=True, help="Seconds."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document per line and change."
)
def watch(
    target: Target, *, job_ids: tuple[str, ...], until_idle: bool, every: float, as_json: bool
) -> None:
    """Show the progress of running jobs until Ctrl-C, or of the given jobs until they end."""

    async def work() -> None:
        async with open_repository(target) as repository:
            watched = WatchedJobs(repository, [JobId(job_id) for job_id in job_ids])
            with ExitStack() as stack:
                view = stack.enter_context(_view(as_json=as_json))
                while True:
                    # Checked before the jobs are read, so that the end of the last one is still
                    # shown.
                    idle = until_idle and await _is_idle(repository)
                    view.show(await watched.read(), repository.now())
                    if watched.over or idle:
                        return
                    await anyio.sleep(every)

    with suppress(KeyboardInterrupt):
        run_async(work)


class WatchedJobs:
    """The jobs to show: the named ones, or all running ones. Each is shown until it has ended."""

    def __init__(self, repository: Repository, ids: Sequence[JobId]) -> None:
        self._repository = repository
        self._ids = ids
        self._running: dict[JobId, None] = {}
        self.over = False

    async def read(self) -> list[Job]:
        """Read the jobs; raise `UnknownJob` for a named job that does not exist."""
        if self._ids:
            found = await self._repository.get(self._ids)
            for job_id, job in zip(self._ids, found, strict=True):
                if job is None:
                    raise UnknownJob(job_id)
        else:
            page = await self._repository.list(
                Selection(status=JobStatus.PROCESSING), limit=_MAX_BARS
            )
            ids = dict.fromkeys([*self._running, *reversed([job.id for job in page.jobs])])
            found = await self._repository.get(list(ids))
        jobs = [job for job in found if job is not None]
        self._running = {job.id: None for job in jobs if job.status is JobStatus.PROCESSING}
        self.over = bool(self._ids) and all(job.status.terminal for job in jobs)
        return jobs


async def _is_idle(repository: Repository) -> bool:
    for status in (status for status in JobStatus if not status.terminal):
        page = await repository.list(Selection(status=status), limit=1)
        if page.jobs or page.next is not None:
            return False
    return True


class View(Protocol):
    """Shows the states of jobs, again at each interval."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, jobs: Sequence[Job], now: datetime) -> None:
        """Show the changes since the last call."""
        ...


def _view(*, as_json: bool) -> View:
    return Bars() if sys.stdout.isatty() and not as_json else Lines(as_json=as_json)


class Lines:
    """A line for each visible change, for files and other programs."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: dict[JobId, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def show(self, jobs: Sequence[Job], now: datetime) -> None:
        changed = [job for job in jobs if self._shown.get(job.id) != job.version]
        self._shown = {job.id: job.version for job in jobs}
        for job in changed:
            if self._as_json:
                print_json({**listed_document(job), "detail": job.detail}, indent=None)
                continue
            cells = [job.id, job.type, job.status, f"{job.progress}%", _message(job)]
            click.echo(" ".join([f"{now:%H:%M:%S}", *filter(None, cells)]))


class Bars:
    """A bar for each running job; ended jobs stay as lines above the bars."""

    def __init__(self) -> None:
        self._console = console()
        self._bars: dict[JobId, TaskID] = {}
        self._ended: set[JobId] = set()
        columns = ("{task.fields[id]}", "{task.description}", "{task.percentage:>3.0f}%")
        texts = [TextColumn(column, markup=False) for column in columns]
        message = TextColumn("{task.fields[message]}", markup=False)
        self._progress = Progress(
            *texts, BarColumn(), TimeElapsedColumn(), message, console=self._console
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, jobs: Sequence[Job], now: datetime) -> None:  # noqa: ARG002  # bars show the time
        for job in jobs:
            if job.status.terminal:
                self._end(job)
            else:
                self._update(job)
        for gone in self._bars.keys() - {job.id for job in jobs}:
            self._progress.remove_task(self._bars.pop(gone))

    def _update(self, job: Job) -> None:
        if job.id not in self._bars:
            self._bars[job.id] = self._progress.add_task(
                _name(job), total=100, id=job.id, message=""
            )
        message = _message(job) or _activity(job.status)
        self._progress.update(
            self._bars[job.id],
            description=_name(job),
            completed=job.progress,
            message=message,
        )

    def _end(self, job: Job) -> None:
        bar = self._bars.pop(job.id, None)
        if bar is not None:
            self._progress.remove_task(bar)
        if job.id not in self._ended:
            self._ended.add(job.id)
            text = f"{job.id} {_name(job)} {job.status} {_message(job)}".rstrip()
            self._console.print(text, style=colour_of(job.status))


def _activity(status: JobStatus) -> str:
    """Return the text beside the bar of a job without a message."""
    match status:
        case JobStatus.PENDING:
            return "waits"
        case JobStatus.PROCESSING | JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
            return ""
        case _:
            assert_never(status)


def _name(job: Job) -> str:
    """Return what people see as the job's name."""
    return plain(job.title or job.type)


def _message(job: Job) -> str:
    if job.error is not None:
        return plain(job.error.message)
    return plain((job.detail.message if job.detail else None) or "")

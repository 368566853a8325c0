"""The commands that change jobs: `cancel`, `retry` and `purge`."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import assert_never

import click

from asyncjobs import AsyncJobs
from asyncjobs.cli.app import exit_code_of
from asyncjobs.cli.listing import as_json, duration, with_selection, with_tag
from asyncjobs.cli.output import listed_document, print_json
from asyncjobs.cli.target import (
    Target,
    listing_of,
    open_queue,
    open_repository,
    open_store,
    run_async,
    with_target,
)
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.errors import IllegalMove, UnknownJob
from asyncjobs.files import FileStorage
from asyncjobs.files.contents import delete_files_of
from asyncjobs.protocols import Selection, Store
from asyncjobs.records.repository import delete_jobs

_TERMINAL = tuple(status for status in JobStatus if status.terminal)
_PAGE_SIZE = 500


@click.command()
@with_target
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@as_json
def cancel(target: Target, *, job_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel waiting jobs, ask running ones to stop, and leave ended ones as they are.

    The id of a batch cancels all of its jobs.
    """

    async def cancel_job(jobs: AsyncJobs, job_id: JobId) -> Job:
        return await jobs.cancel(job_id)

    def describe(job: Job) -> str:
        match job.status:
            case JobStatus.PROCESSING:
                return f"{job.id} was asked to stop"
            case JobStatus.PENDING | JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
                return f"{job.id} is {job.status}"
            case _:
                assert_never(job.status)

    _for_each(target, job_ids, cancel_job, None if as_json else describe)


@click.command()
@with_target
@click.argument("job_ids", metavar="[JOB_ID]...", nargs=-1)
@click.option("--failed", is_flag=True, help="All failed jobs that were not yet retried.")
@click.option("--user", metavar="ID", help="With --failed: only jobs of this owner.")
@click.option("--type", metavar="NAME", help="With --failed: only jobs of this type.")
@with_tag
@click.option("--yes", is_flag=True, help="With --failed: do not ask for confirmation.")
@as_json
def retry(  # noqa: PLR0913  # one parameter per option
    target: Target,
    *,
    job_ids: tuple[str, ...],
    failed: bool,
    user: str | None,
    type: str | None,
    tag: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Run ended jobs again, each once, as a new job that names the old one.

    For a batch, its failed and cancelled jobs run again as a new batch. Give the ids of the jobs,
    or --failed for all failed ones.
    """
    if bool(job_ids) is failed:
        raise click.UsageError("Give the ids of jobs, or --failed, but not both.")
    which = Selection(user_id=user, type=type, tag=tag)
    if not failed and which.given():
        raise click.UsageError("--user, --type and --tag require --failed.")

    async def retry_job(jobs: AsyncJobs, job_id: JobId) -> Job:
        return (await jobs.retry(job_id)).job

    def describe(job: Job) -> str:
        already = f", and is {job.status} already" if job.status.terminal else ""
        return f"{job.id} retries {job.retry_of}{already}"

    if failed:
        job_ids = _failed_jobs(target, which)
        if job_ids:
            _confirm(f"Retry {_jobs(len(job_ids))}?", yes=yes)
        elif not as_json:
            click.echo("No failed jobs to retry.", err=True)
    done = _for_each(target, job_ids, retry_job, None if as_json else describe, skip_gone=failed)
    if failed and done and not as_json:
        click.echo(f"{_jobs(done)} retried.", err=True)


def _failed_jobs(target: Target, which: Selection) -> tuple[str, ...]:
    """Find the failed jobs, the newest first, except those that another job retries already.

    The retry of a batch runs its failed and cancelled jobs again. So each job is retried alone, or
    with its batch, but not both.
    """
    # By id, with the batch of each.
    failed: dict[JobId, JobId | None] = {}
    retried: set[JobId] = set()
    # Batches that are retried with their jobs, and those with a job that is retried already.
    whole: set[JobId] = set()
    batch_of: dict[JobId, JobId] = {}

    async def work() -> None:
        async with open_repository(target) as repository:
            after: str | None = None
            while True:
                page = await repository.list(which, limit=_PAGE_SIZE, after=after)
                retried.update(job.retry_of for job in page.jobs if job.retry_of is not None)
                for job in page.jobs:
                    if job.batch is not None and job.status.terminal:
                        batch_of[job.id] = job.batch
                    if job.status is not JobStatus.FAILED:
                        continue
                    if job.counts is not None:
                        if not job.counts.failed and not job.counts.cancelled:
                            continue  # no job of the batch can be retried
                        whole.add(job.id)
                    failed[job.id] = job.batch
                if (after := page.next) is None:
                    break

    run_async(work)
    begun = {batch_of[job_id] for job_id in retried if job_id in batch_of}
    with_batch = (whole - begun) | (whole & retried)
    return tuple(
        job_id
        for job_id, batch in failed.items()
        if job_id not in retried
        and (batch is None or batch not in with_batch)
        and (job_id not in whole or job_id not in begun)
    )


def _for_each(
    target: Target,
    job_ids: Sequence[str],
    act: Callable[[AsyncJobs, JobId], Awaitable[Job]],
    describe: Callable[[Job], str] | None,
    *,
    skip_gone: bool = False,
) -> int:
    """Act on each job and print a line for each, or JSON; the first refusal decides the exit code.

    Returns how many were done. With `skip_gone`, a job deleted meanwhile is not a refusal.
    """
    exit_codes: list[int] = []
    done: list[Job] = []

    async def work() -> None:
        async with open_queue(target) as jobs:
            for job_id in dict.fromkeys(job_ids):
                try:
                    job = await act(jobs, JobId(job_id))
                except (UnknownJob, IllegalMove) as error:
                    if skip_gone and isinstance(error, UnknownJob):
                        continue
                    click.echo(f"Error: {error}", err=True)
                    exit_codes.append(exit_code_of(error))
                else:
                    done.append(job)
                    if describe is not None:
                        click.echo(describe(job))

    run_async(work)
    if describe is None:
        print_json({"jobs": [{**listed_document(job), "retryOf": job.retry_of} for job in done]})
    if exit_codes:
        sys.exit(exit_codes[0])
    return len(done)


@click.command()
@with_target
@with_selection(*_TERMINAL)
@click.option(
    "--older-than",
    metavar="DURATION",
    callback=duration,
    default="0s",
    help="Only jobs that ended at least this long ago: 30s, 15m, 12h, 7d.",
)
@click.option("--dry-run", is_flag=True, help="Only count the jobs.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@as_json
def purge(
    target: Target,
    *,
    which: Selection,
    older_than: timedelta,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete ended jobs with their payloads, results and files. Other jobs are never deleted.

    Jobs with files are only deleted if --jobs names the queue, which knows where the files are.
    """
    found = deleted = 0

    async def work() -> None:
        nonlocal found, deleted
        async with open_store(target) as (store, clock):
            before = clock.now() - older_than
            found = await _count(store, which, before)
            if found and not dry_run:
                _confirm(f"Delete {_jobs(found)}?", yes=yes)
                deleted = await _delete(store, which, before, target.find_files())

    run_async(work)
    if as_json:
        print_json({"found": found, "deleted": deleted})
    elif dry_run or not found:
        click.echo(f"{_jobs(found)} would be deleted.")
    else:
        click.echo(f"{_jobs(deleted)} deleted.")
    if deleted < found and not dry_run:
        click.echo(f"{_jobs(found - deleted)} with files left: name the queue by --jobs.", err=True)


async def _count(store: Store, which: Selection, before: datetime) -> int:
    return sum([len(jobs) async for jobs in _ended(store, which, before)])


async def _delete(
    store: Store, which: Selection, before: datetime, files: FileStorage | None
) -> int:
    """Delete the jobs; leave those with files if their storage is not known."""
    number = 0
    async with aclosing(_ended(store, which, before)) as pages:
        async for jobs in pages:
            wanted = [job for job in jobs if not job.files or files is not None]
            for job in wanted:
                if job.files and files is not None:
                    await delete_files_of(files, job.id)
            await delete_jobs(store, [job.id for job in wanted])
            number += len(wanted)
    return number


async def _ended(store: Store, which: Selection, before: datetime) -> AsyncGenerator[list[Job]]:
    """Yield jobs page by page. A terminal job stays terminal, so none can start meanwhile."""
    listing = listing_of(store)
    for status in (which.status,) if which.status else _TERMINAL:
        after = None
        while True:
            page = await listing.list(replace(which, status=status), limit=_PAGE_SIZE, after=after)
            ended = [job for job in page.jobs if job.status.terminal]
            if jobs := [job for job in ended if (job.completed_at or before) <= before]:
                yield jobs
            if (after := page.next) is None:
                break


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"Cannot ask for confirmation without a terminal: {question} Use --yes."
        )
    click.confirm(question, abort=True, err=True)


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"

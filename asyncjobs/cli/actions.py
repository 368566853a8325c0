"""The commands that change jobs: `cancel`, `retry` and `purge`."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypedDict, Unpack

import click

from asyncjobs import AsyncJobs
from asyncjobs.cli.app import exit_code_of
from asyncjobs.cli.listing import as_json, duration, with_selection
from asyncjobs.cli.output import listed_document, print_json
from asyncjobs.cli.target import (
    Target,
    acting,
    carry_out,
    listing_of,
    opened,
    with_target,
)
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.errors import IllegalMove, UnknownJob
from asyncjobs.protocols import Selection, Store


class _Purging(TypedDict):
    """How `purge` goes about it, as click hands it over."""

    older_than: timedelta
    dry_run: bool
    yes: bool
    as_json: bool


_ENDS = tuple(status for status in JobStatus if status.terminal)
_PAGE = 500


@click.command()
@with_target
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@as_json
def cancel(target: Target, *, job_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel waiting jobs at once, and ask running ones to stop; leave ended ones."""

    async def one(jobs: AsyncJobs, job_id: JobId) -> Job:
        return await jobs.cancel(job_id)

    def told(job: Job) -> str:
        asked = job.status is JobStatus.PROCESSING
        return f"{job.id} {'was asked to stop' if asked else f'is {job.status}'}"

    _each(target, job_ids, one, None if as_json else told)


@click.command()
@with_target
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@as_json
def retry(target: Target, *, job_ids: tuple[str, ...], as_json: bool) -> None:
    """Run ended jobs again, each as a new job that points at the old one."""

    async def one(jobs: AsyncJobs, job_id: JobId) -> Job:
        return (await jobs.retry(job_id)).job

    _each(target, job_ids, one, None if as_json else lambda job: f"{job.id} retries {job.retry_of}")


def _each(
    target: Target,
    job_ids: Sequence[str],
    act: Callable[[AsyncJobs, JobId], Awaitable[Job]],
    told: Callable[[Job], str] | None,
) -> None:
    """Do it to each job, tell of each, and exit by the first that it was refused for."""
    refused: list[int] = []
    done: list[Job] = []

    async def work() -> None:
        async with acting(target) as jobs:
            for job_id in dict.fromkeys(job_ids):
                try:
                    job = await act(jobs, JobId(job_id))
                except (UnknownJob, IllegalMove) as error:
                    click.echo(f"Error: {error}", err=True)
                    refused.append(exit_code_of(error))
                else:
                    done.append(job)
                    if told is not None:
                        click.echo(told(job))

    carry_out(work)
    if told is None:
        print_json({"jobs": [{**listed_document(job), "retryOf": job.retry_of} for job in done]})
    if refused:
        sys.exit(refused[0])


@click.command()
@with_target
@with_selection(*_ENDS)
@click.option(
    "--older-than",
    metavar="DURATION",
    callback=duration,
    default="0s",
    help="Only jobs that ended so long ago: 30s, 15m, 12h, 7d.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many jobs that are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def purge(target: Target, *, which: Selection, **options: Unpack[_Purging]) -> None:
    """Delete finished jobs with their payloads and results. Others are never touched."""
    found = deleted = 0

    async def work() -> None:
        nonlocal found, deleted
        async with opened(target) as (store, clock):
            before = clock.now() - options["older_than"]
            found = await _count(store, which, before)
            if found and not options["dry_run"]:
                _ask(f"Delete {_jobs(found)}?", yes=options["yes"])
                deleted = await _delete(store, which, before)

    carry_out(work)
    if options["as_json"]:
        print_json({"found": found, "deleted": deleted})
    elif options["dry_run"] or not found:
        click.echo(f"{_jobs(found)} would be deleted.")
    else:
        click.echo(f"{_jobs(deleted)} deleted.")


async def _count(store: Store, which: Selection, before: datetime) -> int:
    return sum([len(ids) async for ids in _finished(store, which, before)])


async def _delete(store: Store, which: Selection, before: datetime) -> int:
    number = 0
    async with aclosing(_finished(store, which, before)) as pages:
        async for ids in pages:
            await store.delete(ids)
            number += len(ids)
    return number


async def _finished(
    store: Store, which: Selection, before: datetime
) -> AsyncGenerator[list[JobId]]:
    """Yield ids page by page. What is terminal stays so: nobody can begin it in between."""
    listing = listing_of(store)
    for status in (which.status,) if which.status else _ENDS:
        after = None
        while True:
            page = await listing.list(replace(which, status=status), limit=_PAGE, after=after)
            ended = [job for job in page.jobs if job.status.terminal]
            if ids := [job.id for job in ended if (job.completed_at or before) <= before]:
                yield ids
            if (after := page.next) is None:
                break


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask: say --yes, or --dry-run to look first.")
    click.confirm(question, abort=True, err=True)


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"

"""The commands `list` and `show`, and the options that select jobs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from typing import Any

import click

from asyncjobs.cli.output import (
    attempt_error_document,
    job_document,
    listed_document,
    print_attempt_errors,
    print_batch,
    print_json,
    print_sheet,
    print_table,
)
from asyncjobs.cli.target import Target, open_repository, run_async, with_target
from asyncjobs.core.batches import counts_of
from asyncjobs.core.descriptions import tag_fault
from asyncjobs.core.job import JobId, JobStatus
from asyncjobs.protocols import Selection

_DURATION = re.compile(r"(\d{1,6}(?:\.\d+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(_context: click.Context, _parameter: click.Parameter, value: str) -> timedelta:
    """Parse an option such as 30s, 15m, 12h or 7d."""
    found = _DURATION.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a duration; write 30s, 15m, 12h or 7d.")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def _tag(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Check the option of a tag; a store would find nothing for a malformed one."""
    fault = None if value is None else tag_fault(value)
    if fault is not None:
        raise click.BadParameter(fault)
    return value


#: The option that selects the jobs with a tag.
with_tag = click.option("--tag", metavar="TAG", callback=_tag, help="Only jobs with this tag.")


def with_selection(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options that select jobs to a command; it is called with `which`, a `Selection`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--user", metavar="ID", help="Only jobs of this owner.")
        @click.option("--type", metavar="NAME", help="Only jobs of this type.")
        @with_tag
        @click.option("--status", type=click.Choice([status.value for status in statuses]))
        @click.option("--failed", is_flag=True, help="The same as --status failed.")
        @wraps(command)
        def called(
            *args: Any,
            user: str | None,
            type: str | None,
            tag: str | None,
            status: str | None,
            failed: bool,
            **others: Any,
        ) -> None:
            if failed and status not in (None, JobStatus.FAILED):
                raise click.UsageError(f"Give --failed or --status {status}, not both.")
            chosen = JobStatus.FAILED if failed else None if status is None else JobStatus(status)
            which = Selection(user_id=user, type=type, status=chosen, tag=tag)
            command(*args, which=which, **others)

        return called

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command("list")
@with_target
@with_selection(*JobStatus)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--after", metavar="CURSOR", help="Continue after an earlier list.")
@click.option("--batch", "batch_id", metavar="ID", help="Only jobs of this batch.")
@click.option("--no-members", is_flag=True, help="Leave out the jobs that belong to a batch.")
@as_json
def list_(
    target: Target,
    *,
    which: Selection,
    limit: int,
    after: str | None,
    batch_id: str | None,
    no_members: bool,
    as_json: bool,
) -> None:
    """List jobs, the newest first."""
    if batch_id is not None and no_members:
        raise click.UsageError("Give --batch or --no-members, not both.")
    batch = None if batch_id is None else JobId(batch_id)
    which = replace(which, batch=batch, members=not no_members)

    async def work() -> None:
        async with open_repository(target) as repository:
            page = await repository.list(which, limit=limit, after=after)
            now = repository.now()
        if as_json:
            print_json({"jobs": [listed_document(job) for job in page.jobs], "next": page.next})
            return
        print_table(page.jobs, now)
        if page.next is not None:
            click.echo(f"There are more jobs: --after {page.next}", err=True)

    run_async(work)


@click.command()
@with_target
@click.argument("batch_id")
@as_json
def batch(target: Target, *, batch_id: str, as_json: bool) -> None:
    """Show how many jobs of a batch have which status, and the first that failed."""

    async def work() -> None:
        async with open_repository(target) as repository:
            job = await repository.find(JobId(batch_id))
        counts_of(job)
        if as_json:
            print_json(job_document(job))
            return
        print_batch(job)

    run_async(work)


@click.command()
@with_target
@click.argument("job_id")
@click.option("--payload", "with_payload", is_flag=True, help="Include the payload.")
@as_json
def show(target: Target, *, job_id: str, with_payload: bool, as_json: bool) -> None:
    """Show everything about one job and what its attempts raised, without its payload."""

    async def work() -> None:
        async with open_repository(target) as repository:
            job = await repository.find(JobId(job_id))
        document: dict[str, Any] = {**job_document(job), "result": job.result}
        if with_payload:
            document["payload"] = job.payload
        errors = job.attempt_errors
        if as_json:
            shown = [attempt_error_document(error) for error in errors]
            print_json({**document, "attemptErrors": shown})
        else:
            print_sheet(document)
            print_attempt_errors(errors)

    run_async(work)

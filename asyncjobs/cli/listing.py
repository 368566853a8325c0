"""`asyncjobs list` and `asyncjobs show`: select jobs and print them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

import click

from asyncjobs.cli.output import (
    job_document,
    listed_document,
    print_json,
    print_sheet,
    print_table,
)
from asyncjobs.cli.target import Target, carry_out, reading, with_target
from asyncjobs.core.job import JobId, JobStatus
from asyncjobs.protocols import Selection

_DURATION = re.compile(r"(\d{1,6}(?:\.\d+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(_context: click.Context, _parameter: click.Parameter, value: str) -> timedelta:
    """Read what an option says: 30s, 15m, 12h or 7d."""
    found = _DURATION.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no duration; write 30s, 15m, 12h or 7d.")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def with_selection(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that select jobs; it is called with `which`, a `Selection`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--user", metavar="ID", help="Only jobs of this owner.")
        @click.option("--type", metavar="NAME", help="Only jobs of this type.")
        @click.option("--status", type=click.Choice([one.value for one in statuses]))
        @wraps(command)
        def called(
            *args: Any, user: str | None, type: str | None, status: str | None, **others: Any
        ) -> None:
            chosen = None if status is None else JobStatus(status)
            which = Selection(user_id=user, type=type, status=chosen)
            command(*args, which=which, **others)

        return called

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command("list")
@with_target
@with_selection(*JobStatus)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--after", metavar="CURSOR", help="Go on where an earlier list ended.")
@as_json
def list_(
    target: Target, *, which: Selection, limit: int, after: str | None, as_json: bool
) -> None:
    """List jobs, the newest first."""

    async def work() -> None:
        async with reading(target) as repository:
            page = await repository.list(which, limit=limit, after=after)
            now = repository.now()
        if as_json:
            print_json({"jobs": [listed_document(job) for job in page.jobs], "next": page.next})
            return
        print_table(page.jobs, now)
        if page.next is not None:
            click.echo(f"There are more: --after {page.next}", err=True)

    carry_out(work)


@click.command()
@with_target
@click.argument("job_id")
@click.option("--payload", "with_payload", is_flag=True, help="Show the payload, too.")
@as_json
def show(target: Target, *, job_id: str, with_payload: bool, as_json: bool) -> None:
    """Show all of one job, but its payload."""

    async def work() -> None:
        async with reading(target) as repository:
            job = await repository.find(JobId(job_id))
        document: dict[str, Any] = {**job_document(job), "result": job.result}
        if with_payload:
            document["payload"] = job.payload
        if as_json:
            print_json(document)
        else:
            print_sheet(document)

    carry_out(work)

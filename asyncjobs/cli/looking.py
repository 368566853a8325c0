"""The commands that look at jobs and leave them as they are: `list` and `show`."""

from __future__ import annotations

from typing import Any

import click

from asyncjobs.cli.showing import (
    job_document,
    listed_document,
    print_json,
    print_sheet,
    print_table,
)
from asyncjobs.cli.targets import Target, carry_out, reading, with_target
from asyncjobs.cli.wanted import with_selection
from asyncjobs.model import JobId, JobStatus
from asyncjobs.protocols import Selection

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
        async with reading(target) as ledger:
            page = await ledger.list(which, limit=limit, after=after)
            now = ledger.now()
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
        async with reading(target) as ledger:
            job = await ledger.find(JobId(job_id))
        document: dict[str, Any] = {**job_document(job), "result": job.result}
        if with_payload:
            document["payload"] = job.payload
        if as_json:
            print_json(document)
        else:
            print_sheet(document)

    carry_out(work)

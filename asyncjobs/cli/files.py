"""The command `files`: lists and downloads the files of a job, and deletes those of none."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path

import click

from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import print_json
from asyncjobs.cli.target import Target, open_queue, run_async, with_target
from asyncjobs.core.files import listed_files
from asyncjobs.core.job import JobId
from asyncjobs.core.printable import plain


@click.command()
@with_target
@click.argument("job_id", required=False)
@click.argument("name", required=False)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to save the file; by default under its name in the working directory.",
)
@click.option("--sweep", is_flag=True, help="Delete the files of jobs that are gone.")
@as_json
def files(
    target: Target,
    *,
    job_id: str | None,
    name: str | None,
    output: Path | None,
    sweep: bool,
    as_json: bool,
) -> None:
    """List the files of a job, or save the one of that NAME.

    Saving and --sweep need --jobs, since the queue knows where the files are.
    """
    if sweep == (job_id is not None):
        raise click.UsageError("Give a job id, or --sweep.")

    async def work() -> None:
        if job_id is None:
            await _sweep(target, as_json=as_json)
        elif name is None:
            await _list(target, JobId(job_id), as_json=as_json)
        else:
            await _save(target, JobId(job_id), name, output or Path(name))

    run_async(work)


async def _list(target: Target, job_id: JobId, *, as_json: bool) -> None:
    async with open_queue(target) as jobs:
        found = listed_files((await jobs.find(job_id)).files)
    if as_json:
        rows = [{"name": one.name, "size": one.size, "mediaType": one.media_type} for one in found]
        print_json({"files": rows})
        return
    for one in found:
        click.echo(f"{one.size:>15,}  {plain(one.name)}")


async def _save(target: Target, job_id: JobId, name: str, to: Path) -> None:
    """Write to a temporary file first: a download that is interrupted leaves none."""
    async with open_queue(target) as jobs:
        part = to.with_name(f"{to.name}.part")
        async with aclosing(await jobs.read_file(job_id, name)) as chunks:
            try:
                with part.open("wb") as file:
                    async for chunk in chunks:
                        file.write(chunk)
                os.replace(part, to)  # noqa: PTH105  # atomic on every system
            finally:
                part.unlink(missing_ok=True)
    click.echo(f"Saved {plain(str(to))}.")


async def _sweep(target: Target, *, as_json: bool) -> None:
    async with open_queue(target) as jobs:
        swept = await jobs.sweep_files()
    if as_json:
        print_json({"swept": list(swept)})
    else:
        click.echo(f"The files of {len(swept)} jobs were deleted.")

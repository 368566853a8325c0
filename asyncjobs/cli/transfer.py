"""The command `move`: all jobs of one store into another."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import Progress

from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import print_json
from asyncjobs.cli.target import carry_out, present
from asyncjobs.errors import ConfigurationError, TransferRefused
from asyncjobs.runtime.transfer import Moved, Plan, Tell, copy, plan
from asyncjobs.stores import store_from_url
from asyncjobs.stores.memory import MemoryStore


@click.command()
@click.option("--from", "origin", metavar="URL", required=True, help="The store that has the jobs.")
@click.option("--to", "goal", metavar="URL", required=True, help="The store that gets them.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--running", is_flag=True, help="Go on though jobs run; they are begun again there.")
@as_json
def move(*, origin: str, goal: str, dry_run: bool, running: bool, as_json: bool) -> None:
    """Copy all jobs of a store into another one, and verify the copy.

    Stop what uses the two stores before. A move that was broken off is continued by the same
    command. The jobs stay in the source.
    """
    if origin == goal:
        raise ConfigurationError("A store cannot be moved to itself.")
    source, target = present(store_from_url(origin)), store_from_url(goal)
    if any(isinstance(store, MemoryStore) for store in (source, target)):
        raise ConfigurationError("A memory store is gone with its process: nothing can be moved.")

    async def work() -> None:
        async with source, target:
            planned = await plan(source, target)
            if planned.running and not running and not dry_run:
                raise TransferRefused(
                    f"jobs run in the source ({planned.running}); stop its workers, or say "
                    "--running to have them begun again in the target"
                )
            if dry_run:
                _tell_plan(planned, as_json=as_json)
                return
            with _progress() as tell:
                moved = await copy(source, target, planned, tell)
        _tell_moved(moved, as_json=as_json)

    carry_out(work)


def _tell_plan(planned: Plan, *, as_json: bool) -> None:
    if as_json:
        counts = {"jobs": len(planned.ids), "present": planned.present, "running": planned.running}
        print_json({**counts, "unreadable": planned.unreadable})
        return
    click.echo(
        f"{len(planned.ids)} jobs in the source, {planned.present} of them in the target already; "
        f"{planned.running} are running."
    )


def _tell_moved(moved: Moved, *, as_json: bool) -> None:
    if as_json:
        counts = {"jobs": moved.digest.jobs, "copied": moved.copied, "updated": moved.updated}
        told = {"checksum": str(moved.digest), "unreadable": moved.unreadable}
        print_json({**counts, **told})
    else:
        click.echo(
            f"Both stores have the same jobs: {moved.digest.jobs} ({moved.copied} copied, "
            f"{moved.updated} updated; checksum {str(moved.digest)[:12]})."
        )
    if moved.unreadable:
        left = ", ".join(moved.unreadable)
        click.echo(f"Error: left out, since they cannot be read: {left}", err=True)
        sys.exit(1)


@contextmanager
def _progress() -> Generator[Tell]:
    """Show a bar beside the data, where somebody looks."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    with Progress(console=Console(stderr=True)) as shown:
        bars = {what: shown.add_task(what, total=None) for what in ("copy", "verify")}

        def tell(what: str, done: int, total: int) -> None:
            shown.update(bars[what], completed=done, total=total)

        yield tell

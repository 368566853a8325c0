"""The command `transfer`: copy all jobs of one store into another."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import Progress

from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import print_json
from asyncjobs.cli.target import require_file, run_async
from asyncjobs.errors import ConfigurationError, TransferRefused
from asyncjobs.runtime.transfer import (
    ReportProgress,
    TransferPlan,
    TransferResult,
    copy_jobs,
    plan_transfer,
)
from asyncjobs.stores import store_from_url
from asyncjobs.stores.memory import MemoryStore


@click.command()
@click.option("--from", "source_url", metavar="URL", required=True, help="The store to copy from.")
@click.option("--to", "target_url", metavar="URL", required=True, help="The store to copy to.")
@click.option("--dry-run", is_flag=True, help="Only count the jobs.")
@click.option(
    "--running", is_flag=True, help="Copy running jobs, too; they start again in the target."
)
@as_json
def transfer(
    *, source_url: str, target_url: str, dry_run: bool, running: bool, as_json: bool
) -> None:
    """Copy all jobs of a store into another one, and verify the copy.

    Stop all processes that use the two stores first. The same command continues an interrupted
    transfer. The jobs stay in the source.
    """
    if source_url == target_url:
        raise ConfigurationError("A store cannot be transferred to itself.")
    source, target = require_file(store_from_url(source_url)), store_from_url(target_url)
    if any(isinstance(store, MemoryStore) for store in (source, target)):
        raise ConfigurationError("A memory store belongs to one process: it cannot be transferred.")

    async def work() -> None:
        async with source, target:
            plan = await plan_transfer(source, target)
            if plan.running and not running and not dry_run:
                raise TransferRefused(
                    f"jobs run in the source ({plan.running}); stop its workers, or use --running "
                    "to start them again in the target"
                )
            if dry_run:
                _print_plan(plan, as_json=as_json)
                return
            with _progress_bar() as report:
                result = await copy_jobs(source, target, plan, report)
        _print_result(result, as_json=as_json)

    run_async(work)


def _print_plan(plan: TransferPlan, *, as_json: bool) -> None:
    if as_json:
        counts = {"jobs": len(plan.ids), "present": plan.present, "running": plan.running}
        print_json({**counts, "unreadable": plan.unreadable})
        return
    click.echo(
        f"{len(plan.ids)} jobs in the source, {plan.present} of them in the target already; "
        f"{plan.running} are running."
    )


def _print_result(result: TransferResult, *, as_json: bool) -> None:
    if as_json:
        counts = {"jobs": result.digest.jobs, "copied": result.copied, "updated": result.updated}
        checksum = {"checksum": str(result.digest), "unreadable": result.unreadable}
        print_json({**counts, **checksum})
    else:
        click.echo(
            f"Both stores have the same jobs: {result.digest.jobs} ({result.copied} copied, "
            f"{result.updated} updated; checksum {str(result.digest)[:12]})."
        )
    if result.unreadable:
        left = ", ".join(result.unreadable)
        click.echo(f"Error: these jobs cannot be read and were not copied: {left}", err=True)
        sys.exit(1)


@contextmanager
def _progress_bar() -> Generator[ReportProgress]:
    """Show progress on standard error if it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _phase, _done, _total: None
        return
    with Progress(console=Console(stderr=True)) as progress:
        bars = {phase: progress.add_task(phase, total=None) for phase in ("copy", "verify")}

        def report(phase: str, done: int, total: int) -> None:
            progress.update(bars[phase], completed=done, total=total)

        yield report

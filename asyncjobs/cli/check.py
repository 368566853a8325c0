"""The command `check`: the settings of the store, the queue and the web server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from asyncjobs import AsyncJobs
from asyncjobs.cli.advice import (
    Server,
    gunicorn_server,
    handler_warnings,
    queue_warnings,
    server_warnings,
    stop_warnings,
)
from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import print_json, print_rows
from asyncjobs.cli.target import Target, find_mounts, require_file, run_async, with_target
from asyncjobs.http.mounts import MountOptions
from asyncjobs.protocols import Finding, Inspection, Store, StoreClock, power_of
from asyncjobs.stores.memory import MemoryStore

# A smaller difference between the clocks of store and machine is harmless.
_MAX_CLOCK_OFFSET = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The options' description of the processes in production."""

    server: Server
    mounts: Sequence[MountOptions]
    queues: Sequence[str]
    stop_timeout: float


def _split(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    return [name.strip() for name in (value or "").split(",") if name.strip()]


@click.command()
@with_target
@click.option(
    "--app",
    metavar="MODULE:ATTRIBUTE",
    help="The application on which the routes are mounted, for its MountOptions.",
)
@click.option(
    "--gunicorn",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A gunicorn configuration file; it is executed.",
)
@click.option(
    "--keep-alive",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long the web server keeps idle connections.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of each process of a WSGI server.",
)
@click.option(
    "--queues",
    metavar="NAME,NAME",
    callback=_split,
    help="All queues that workers serve; if an engine runs the jobs, by its names. Without it, "
    "the running workers of Celery or RQ are asked.",
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="How long the container or service manager waits before it kills a stopping process.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 after a warning, too.")
@as_json
def check(  # noqa: PLR0913  # one parameter per option
    target: Target,
    *,
    app: str | None,
    gunicorn: Path | None,
    keep_alive: float | None,
    threads: int | None,
    queues: list[str],
    stop_timeout: float,
    strict: bool,
    as_json: bool,
) -> None:
    """Check the settings of the store, and warn of problems in production.

    Exits with 1 if the store needs attention; warnings of the queue (with --jobs) and the web
    server do not count without --strict. Opening the store updates its tables, as in every process
    that opens it.
    """
    jobs = target.find_jobs()
    store = require_file(target.find_store() if jobs is None else jobs.store)
    server = Server(threads=threads) if gunicorn is None else gunicorn_server(gunicorn, threads)
    if keep_alive is not None:
        server = replace(server, keep_alive=keep_alive)
    mounts = [MountOptions()] if app is None else find_mounts(app)
    setup = Setup(server=server, mounts=mounts, queues=queues, stop_timeout=stop_timeout)
    warnings = _warnings(jobs, store, setup)

    async def work() -> None:
        async with store:
            findings = await _inspect(store)
        if as_json:
            listed = [asdict(finding) for finding in findings]
            print_json({"findings": listed, "warnings": warnings})
        else:
            rows = [(it.subject, it.found, it.advice or "ok") for it in findings]
            print_rows(("what", "found", "advice"), rows)
            for warning in warnings:
                click.echo(f"Warning: {warning}")
        if any(finding.advice for finding in findings):
            click.echo("The store needs attention: see the advice.", err=True)
            sys.exit(1)
        if strict and warnings:
            sys.exit(1)

    run_async(work)


def _warnings(jobs: AsyncJobs | None, store: Store, setup: Setup) -> list[str]:
    warnings: list[str] = []
    if isinstance(store, MemoryStore):
        warnings.append(
            "The store memory:// keeps jobs in one process and loses them when it ends: use a "
            "persistent store, such as sqlite:///jobs.db."
        )
    if jobs is not None:
        warnings += handler_warnings(jobs.registry, jobs.lifespan)
        warnings += queue_warnings(jobs.registry, setup.queues, jobs.dispatcher)
        warnings += stop_warnings(jobs.settings, setup.server, setup.stop_timeout)
    return [*warnings, *server_warnings(setup.server, setup.mounts)]


async def _inspect(store: Store) -> list[Finding]:
    inspection, store_clock = power_of(store, Inspection), power_of(store, StoreClock)
    findings = [] if inspection is None else list(await inspection.inspect())
    if store_clock is not None:
        before = datetime.now(UTC)
        stores = await store_clock.now()
        # The store read its clock at some time during the call, so the uncertainty is half of its
        # duration.
        half = (datetime.now(UTC) - before) / 2
        offset = stores - (before + half)
        advice = "" if abs(offset) <= _MAX_CLOCK_OFFSET + half else "set both clocks with NTP"
        findings.append(Finding("clock offset", f"{offset.total_seconds():+.3f} s", advice))
    return findings or [Finding("store", "can be opened; reports no settings")]

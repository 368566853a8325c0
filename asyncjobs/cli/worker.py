"""The command that runs jobs: `worker`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict, Unpack

import anyio
import click

from asyncjobs.cli.target import find_jobs
from asyncjobs.workers.health import answering
from asyncjobs.workers.process import Serving, serve
from asyncjobs.workers.supervisor import Crew, supervise

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Options(TypedDict):
    """The options, as click hands them over."""

    queues: list[str]
    concurrency: int
    processes: int
    health_file: Path | None
    health_port: int | None
    health_host: str
    log_level: str
    supervised: bool


def _split(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    return [name.strip() for name in (value or "").split(",") if name.strip()]


@click.command()
@click.argument("jobs", metavar="MODULE:ATTRIBUTE", envvar="ASYNCJOBS_JOBS")
@click.option(
    "--queues",
    metavar="NAME,NAME",
    callback=_split,
    help="Serve these queues only, an earlier one before a later one.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many jobs each process runs at a time.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many worker processes to keep running.",
)
@click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write this file every 2 seconds while the workers are alive.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    help="Answer /live and /ready on this port: 200, or 503.",
)
@click.option(
    "--health-host", default="127.0.0.1", show_default=True, help="Where --health-port listens."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is logged to standard error, unless the module sets up logging itself.",
)
@click.option("--supervised", is_flag=True, hidden=True)
def worker(jobs: str, **options: Unpack[_Options]) -> None:
    """Run the jobs of an application's queue, until told to stop.

    MODULE:ATTRIBUTE is the application's AsyncJobs object. SIGTERM or Ctrl-C: nothing more is
    begun, running jobs have the grace period, and what has not ended then is given back. A second
    signal: everything is given back at once.
    """
    if options["processes"] == 1:
        _work(jobs, options)
    else:
        sys.exit(_supervise(jobs, options))


def _work(jobs: str, options: _Options) -> None:
    found = find_jobs(jobs)
    logging.basicConfig(level=options["log_level"].upper(), format=_FORMAT)
    with _one_health_file(options) as file:
        how = Serving(
            concurrency=options["concurrency"],
            queues=options["queues"] or None,
            health_file=file,
            supervised=options["supervised"],
        )
        anyio.run(serve, found, how, backend="asyncio")


def _supervise(jobs: str, options: _Options) -> int:
    logging.basicConfig(level=options["log_level"].upper(), format=_FORMAT)
    command = [sys.executable, "-m", "asyncjobs", "worker", jobs]
    command += ["--concurrency", str(options["concurrency"]), "--log-level", options["log_level"]]
    if options["queues"]:
        command += ["--queues", ",".join(options["queues"])]
    with _health_files(options, options["processes"]) as files:
        crew = Crew(command=command, health_files=files, health_file=options["health_file"])
        return anyio.run(supervise, crew, backend="asyncio")


@contextmanager
def _one_health_file(options: _Options) -> Generator[Path | None]:
    """Name the file of the only process, and answer for it where that is wanted."""
    port, file = options["health_port"], options["health_file"]
    if port is None:
        yield file
    elif file is not None:
        with answering(options["health_host"], port, [file]):
            yield file
    else:
        with _health_files(options, 1) as [only]:
            yield only


@contextmanager
def _health_files(options: _Options, count: int) -> Generator[list[Path]]:
    """Name a file for each process, and answer for all of them where that is wanted."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="asyncjobs-"))
        files = [Path(folder) / f"worker-{number}" for number in range(count)]
        if (port := options["health_port"]) is not None:
            stack.enter_context(answering(options["health_host"], port, files))
        yield files

"""The command `worker`: run the jobs of a queue."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import click

from asyncjobs.cli.target import find_jobs
from asyncjobs.workers.health import serve_health
from asyncjobs.workers.process import WorkerOptions, run_worker
from asyncjobs.workers.supervisor import WorkerGroup, supervise

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


#: Host and port of the health checks over HTTP.
Address = tuple[str, int]


def _split(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    return [name.strip() for name in (value or "").split(",") if name.strip()]


@click.command()
@click.argument("jobs", metavar="MODULE:ATTRIBUTE", envvar="ASYNCJOBS_JOBS")
@click.option(
    "--queues",
    metavar="NAME,NAME",
    callback=_split,
    help="Serve only these queues, in this order of priority.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Jobs that each process runs at a time.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Worker processes to keep running.",
)
@click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write this file every 2 seconds while the workers are alive.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    help="Serve /live and /ready on this port: 200, or 503.",
)
@click.option(
    "--health-host",
    default="127.0.0.1",
    show_default=True,
    help="The host that --health-port listens on.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The level of the log on standard error, unless the module configures logging.",
)
@click.option("--supervised", is_flag=True, hidden=True)
def worker(  # noqa: PLR0913  # one parameter per option
    jobs: str,
    *,
    queues: list[str],
    concurrency: int,
    processes: int,
    health_file: Path | None,
    health_port: int | None,
    health_host: str,
    log_level: str,
    supervised: bool,
) -> None:
    """Run the jobs of an application's queue until stopped.

    MODULE:ATTRIBUTE is the application's AsyncJobs object. After SIGTERM or Ctrl-C no more jobs
    start. Running jobs get the grace period, and are then returned to the queue. A second signal
    returns them at once.
    """
    address = None if health_port is None else (health_host, health_port)
    if processes == 1:
        queue = find_jobs(jobs)
        logging.basicConfig(level=log_level.upper(), format=_FORMAT)
        with _one_health_file(health_file, address) as file:
            options = WorkerOptions(
                concurrency=concurrency,
                queues=queues or None,
                health_file=file,
                supervised=supervised,
            )
            run_worker(queue, options)
        return
    logging.basicConfig(level=log_level.upper(), format=_FORMAT)
    command = [sys.executable, "-m", "asyncjobs", "worker", jobs]
    command += ["--concurrency", str(concurrency), "--log-level", log_level]
    if queues:
        command += ["--queues", ",".join(queues)]
    with _health_files(processes, address) as files:
        group = WorkerGroup(command=command, health_files=files, health_file=health_file)
        exit_code = anyio.run(supervise, group, backend="asyncio")
    sys.exit(exit_code)


@contextmanager
def _one_health_file(file: Path | None, address: Address | None) -> Generator[Path | None]:
    """Yield the health file of a single process; serve it over HTTP if an address is given."""
    if address is None:
        yield file
    elif file is not None:
        with serve_health(*address, [file]):
            yield file
    else:
        with _health_files(1, address) as [only]:
            yield only


@contextmanager
def _health_files(count: int, address: Address | None) -> Generator[list[Path]]:
    """Yield a temporary health file per process; serve them over HTTP if an address is given."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="asyncjobs-"))
        files = [Path(folder) / f"worker-{number}" for number in range(count)]
        if address is not None:
            stack.enter_context(serve_health(*address, files))
        yield files

"""The command `follow`: follow the job at a status URL to its end."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from asyncjobs.client import JobNotFound, JobsClient, JobTimeout, RemoteJob, ServerUnreachable
from asyncjobs.client.output import checked_offset
from asyncjobs.core.output import DEFAULT_STREAM
from asyncjobs.core.printable import plain
from asyncjobs.errors import ConfigurationError

# RFC 9110 sections 5.1 and 5.5. Servers do not agree on an encoding of values beyond ASCII.
_HEADER = re.compile(
    r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?"
)


class Header(click.types.StringParamType):
    """A header line. The environment variable has several, one a line."""

    name = "header"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the lines that are not blank: files and scripts end the last one, too."""
        return [line for line in rv.splitlines() if line.strip()]

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Refuse a malformed header without showing it: it may be a credential."""
        line = str(value).strip()
        if not _HEADER.fullmatch(line):
            self.fail("one of the headers is malformed; write 'Name: value', in ASCII.", param, ctx)
        return line


def _offset(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    try:
        return None if given is None else checked_offset(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("url")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Time limit.")
@click.option(
    "--header",
    "headers",
    metavar="'NAME: VALUE'",
    type=Header(),
    multiple=True,
    envvar="ASYNCJOBS_HEADER",
    show_envvar=True,
    help="Sent with each request, such as credentials; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the job's last document instead.")
@click.option("--output", is_flag=True, help="Print what the job emits instead, as it grows.")
@click.option("--stream", metavar="NAME", help="The same, of a named stream of its output.")
@click.option(
    "--after",
    metavar="OFFSET",
    callback=_offset,
    help="Only the output after an offset, which an interrupted command has printed.",
)
@click.option(
    "--save",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Save the job's files in this folder, and print their paths instead.",
)
def follow(  # noqa: PLR0913  # one parameter per option
    *,
    url: str,
    timeout: float | None,
    headers: tuple[str, ...],
    as_json: bool,
    output: bool,
    stream: str | None,
    after: str | None,
    save: Path | None,
) -> None:
    """Follow a job at its status URL to its end, and print its result as JSON.

    Output is printed as it is: text and bytes unchanged, JSON values one a line.
    """
    if as_json + (output or stream is not None) + (save is not None) > 1:
        raise click.UsageError("Give only one of --json, --output (or --stream) and --save.")
    if after is not None and not output and stream is None:
        raise click.UsageError("--after needs --output or --stream.")
    if find_spec("httpx2") is None:
        raise ConfigurationError("follow needs httpx2: pip install 'asyncjobs-http[client]'.")
    import httpx2  # noqa: PLC0415  # of the extra `client`

    with httpx2.Client(headers=[_pair(header) for header in headers]) as http:
        job = JobsClient(http=http).attach(url)
        try:
            if output or stream is not None:
                _show_output(job, stream or DEFAULT_STREAM, after, timeout)
            elif save is not None:
                _save_files(job, save, timeout)
            else:
                _follow(job, timeout, as_json=as_json)
        except (ServerUnreachable, JobNotFound) as error:
            click.echo(f"Error: {plain(str(error))}", err=True)
            sys.exit(4 if isinstance(error, JobNotFound) else 3)


def _follow(job: RemoteJob[Any], timeout: float | None, *, as_json: bool) -> None:
    """Print the result or the last document; raise the job's error if it has no result."""
    _to_its_end(job, timeout)
    if as_json and job.last is not None:
        _print(job.last.document)
    result = job.result()
    if not as_json:
        _print(result)


def _to_its_end(job: RemoteJob[Any], timeout: float | None) -> None:
    with closing(job.updates(timeout=timeout, progress=sys.stderr.isatty())) as updates:
        for _ in updates:
            pass


def _save_files(job: RemoteJob[Any], folder: Path, timeout: float | None) -> None:
    """Save the files of a job, however it ends; raise its error if it does not complete."""
    _to_its_end(job, timeout)
    for file in job.files:
        try:
            path = job.download(file, folder, timeout=timeout)
        except OSError as error:
            raise click.ClickException(f"{plain(file.name)} cannot be saved: {error}.") from None
        click.echo(plain(str(path)))
    job.result()


def _show_output(
    job: RemoteJob[Any], stream: str, after: str | None, timeout: float | None
) -> None:
    """Print what the job emits to its end; raise the job's error if it does not complete."""
    epoch, shown = 1, None
    try:
        with closing(job.output(stream, after=after, timeout=timeout)) as items:
            for item in items:
                if item.epoch > epoch:
                    epoch = item.epoch
                    click.echo(f"Attempt {epoch} begins.", err=True)
                with _interrupted_later():
                    _show(item.value)
                    shown = item.offset
    except (KeyboardInterrupt, JobTimeout, ServerUnreachable):
        if shown is not None:
            click.echo(f"\nTo go on, add --after {plain(shown)}", err=True)
        raise
    job.result()


@contextmanager
def _interrupted_later() -> Generator[None]:
    """Delay an interrupt by Ctrl-C to the end of the block; a second one ends it at once."""
    caught: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _show(value: Any) -> None:
    match value:
        case str() if sys.stdout.isatty():
            click.echo("\n".join(map(plain, value.split("\n"))), nl=False)
        case str() | bytes():
            click.echo(value, nl=False)
        case _:
            _print(value, indent=None)


def _print(value: Any, indent: int | None = 2) -> None:
    """Print a value of the server in ASCII; raise `ClickException` if JSON cannot have it."""
    try:
        # Escapes in ASCII: a terminal interprets some characters, and cannot show others.
        text = json.dumps(value, indent=indent, allow_nan=False, default=bytes.decode)
    except RecursionError:
        raise click.ClickException("The value is nested too deeply to be printed.") from None
    except ValueError:
        # Of `bytes.decode`: the result has a media type of its own.
        raise click.ClickException("The result is neither JSON nor text.") from None
    click.echo(text)


def _pair(header: str) -> tuple[str, str]:
    name, _, value = header.partition(":")
    return name, value.strip()

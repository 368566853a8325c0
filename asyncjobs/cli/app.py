"""The group of all commands; each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

from asyncjobs.core.printable import plain
from asyncjobs.errors import (
    AsyncJobsError,
    ConfigurationError,
    FileMissing,
    SchemaError,
    StorageUnavailable,
    StoreUnavailable,
    UnknownFile,
    UnknownJob,
    UnknownSchedule,
)

#: The commands in the order of the help, each with its module and its name there.
COMMANDS = {
    "worker": ("worker", "worker"),
    "list": ("listing", "list_"),
    "show": ("listing", "show"),
    "batch": ("listing", "batch"),
    "watch": ("watch", "watch"),
    "cancel": ("actions", "cancel"),
    "retry": ("actions", "retry"),
    "purge": ("actions", "purge"),
    "files": ("files", "files"),
    "schedules": ("schedules", "schedules"),
    "migrate": ("schema", "migrate"),
    "check": ("check", "check"),
    "transfer": ("transfer", "transfer"),
    "follow": ("follow", "follow"),
}

#: The exit codes of the library's errors; 1 for all others.
EXIT_CODES: dict[type[AsyncJobsError], int] = {
    ConfigurationError: 2,
    StoreUnavailable: 3,
    SchemaError: 3,
    UnknownJob: 4,
    UnknownFile: 4,
    StorageUnavailable: 3,
    FileMissing: 3,
    UnknownSchedule: 4,
}


class Commands(click.Group):
    """Imports commands by `COMMANDS`, and prints errors of the library as one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"asyncjobs.cli.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AsyncJobsError as error:
            click.echo(f"Error: {plain(str(error))}", err=True)
            ctx.exit(exit_code_of(error))


def exit_code_of(error: AsyncJobsError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("asyncjobs-http"), prog_name="asyncjobs")
def commands() -> None:
    """Inspect and manage the jobs of a store.

    Name the store by --store URL, or the AsyncJobs object of an application by
    --jobs MODULE:ATTRIBUTE.
    """

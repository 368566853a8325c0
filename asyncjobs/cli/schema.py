"""The command `migrate`: the tables of a store."""

from __future__ import annotations

import click

from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import print_json
from asyncjobs.cli.target import Target, run_async, with_target
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import MigrationScript, Store, power_of


@click.command()
@with_target
@click.option("--sql", is_flag=True, help="Print the script instead, without opening the store.")
@click.option(
    "--since",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --sql: the current schema version; 0 is an empty database.",
)
@as_json
def migrate(target: Target, *, sql: bool, since: int, as_json: bool) -> None:
    """Create or update the store's tables, under the store's lock."""
    store = target.find_store()
    if sql:
        script = _script_of(store, since)
        _print({"sql": script}, script, as_json=as_json)
        return

    async def work() -> None:
        async with store:
            pass

    run_async(work)
    _print({"upToDate": True}, "The store is up to date.\n", as_json=as_json)


def _print(document: dict[str, object], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        click.echo(text, nl=False)


def _script_of(store: Store, since: int) -> str:
    script = power_of(store, MigrationScript)
    if script is None:
        raise ConfigurationError("This store has no tables, so there is no script.")
    return script.migration_sql(since=since)

"""The commands about the store itself: `migrate` and `check`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import click

from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import print_json, print_rows
from asyncjobs.cli.target import Target, require_file, run_async, with_target
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Finding, Inspection, MigrationScript, Store, StoreClock, power_of

# A smaller difference between the clocks of store and machine is harmless.
_MAX_CLOCK_OFFSET = timedelta(seconds=1)


@click.command()
@with_target
@click.option("--sql", is_flag=True, help="Print the script instead, without opening the store.")
@click.option(
    "--since",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --sql: the present schema version; 0 is an empty database.",
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


@click.command()
@with_target
@as_json
def check(target: Target, *, as_json: bool) -> None:
    """Check the settings of the store; exit with 1 if something needs attention.

    Opening the store updates its tables, as in every process that opens it.
    """

    async def work() -> None:
        async with require_file(target.find_store()) as store:
            findings = await _inspect(store)
        if as_json:
            print_json({"findings": [asdict(finding) for finding in findings]})
        else:
            rows = [(it.subject, it.found, it.advice or "ok") for it in findings]
            print_rows(("what", "found", "advice"), rows)
        if any(finding.advice for finding in findings):
            _exit_with_advice()

    run_async(work)


async def _inspect(store: Store) -> list[Finding]:
    inspection, store_clock = power_of(store, Inspection), power_of(store, StoreClock)
    findings = [] if inspection is None else list(await inspection.inspect())
    if store_clock is not None:
        before = datetime.now(UTC)
        stores = await store_clock.now()
        # The store read its clock at some moment of the call, so half of it is the uncertainty.
        half = (datetime.now(UTC) - before) / 2
        offset = stores - (before + half)
        advice = "" if abs(offset) <= _MAX_CLOCK_OFFSET + half else "set both clocks by NTP"
        findings.append(Finding("clock offset", f"{offset.total_seconds():+.3f} s", advice))
    return findings or [Finding("store", "opens; it reports no settings")]


def _exit_with_advice() -> NoReturn:
    click.echo("The store needs attention: see the advice.", err=True)
    sys.exit(1)

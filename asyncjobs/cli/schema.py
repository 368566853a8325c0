"""The commands about the store itself: `migrate` and `check`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import click

from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import print_json, print_rows
from asyncjobs.cli.target import Target, carry_out, present, with_target
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Finding, Inspection, MigrationScript, Store, StoreClock, power_of

# What the clocks of machines that ask for the time do not differ by.
_TOLERATED = timedelta(seconds=1)


@click.command()
@with_target
@click.option("--sql", is_flag=True, help="Print the script instead, without asking the store.")
@click.option(
    "--since",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --sql: the schema version there is; 0 is none at all.",
)
@as_json
def migrate(target: Target, *, sql: bool, since: int, as_json: bool) -> None:
    """Make the store's tables, or bring them up to date, under the store's lock."""
    store = target.find_store()
    if sql:
        script = _script_of(store, since)
        _tell({"sql": script}, script, as_json=as_json)
        return

    async def work() -> None:
        async with store:
            pass

    carry_out(work)
    _tell({"upToDate": True}, "The store is up to date.\n", as_json=as_json)


def _tell(document: dict[str, object], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        click.echo(text, nl=False)


def _script_of(store: Store, since: int) -> str:
    script = power_of(store, MigrationScript)
    if script is None:
        raise ConfigurationError("This store has no tables that a script could make.")
    return script.migration_sql(since=since)


@click.command()
@with_target
@as_json
def check(target: Target, *, as_json: bool) -> None:
    """Look whether the store is set up as jobs need it; exit with 1 where something is to be done.

    Opening the store brings its tables up to date, as every process that opens it does.
    """

    async def work() -> None:
        async with present(target.find_store()) as store:
            findings = await _look_at(store)
        if as_json:
            print_json({"findings": [asdict(finding) for finding in findings]})
        else:
            told = [(one.subject, one.found, one.advice or "ok") for one in findings]
            print_rows(("what", "found", "advice"), told)
        if any(finding.advice for finding in findings):
            _complain()

    carry_out(work)


async def _look_at(store: Store) -> list[Finding]:
    inspection, store_clock = power_of(store, Inspection), power_of(store, StoreClock)
    findings = [] if inspection is None else list(await inspection.inspect())
    if store_clock is not None:
        asked = datetime.now(UTC)
        theirs = await store_clock.now()
        answered = datetime.now(UTC)
        # It looked at its clock at some moment in between, and that is as exact as it gets.
        off = (theirs - (asked + (answered - asked) / 2)).total_seconds()
        fair = abs(off) <= (_TOLERATED + (answered - asked) / 2).total_seconds()
        advice = "" if fair else "let both machines set their clocks by NTP"
        findings.append(Finding("clock offset", f"{off:+.3f} s", advice))
    return findings or [Finding("store", "opens; it tells nothing about itself")]


def _complain() -> NoReturn:
    click.echo("Something is to be done: see the advice.", err=True)
    sys.exit(1)

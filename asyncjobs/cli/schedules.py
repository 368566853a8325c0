"""The commands of `asyncjobs schedules`: list, pause, resume, run and remove schedules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click

from asyncjobs.cli.listing import as_json
from asyncjobs.cli.output import listed_document, print_json, print_rows
from asyncjobs.cli.target import Target, open_repository, run_async, with_target
from asyncjobs.core.schedules import Declared, Schedule
from asyncjobs.errors import ConfigurationError
from asyncjobs.records.repository import Repository
from asyncjobs.runtime.schedules import read_schedules, remove_record, set_paused


@click.group(invoke_without_command=True)
@with_target
@as_json
@click.pass_context
def schedules(context: click.Context, target: Target, *, as_json: bool) -> None:
    """List schedules with their next and latest run; or change one."""
    if context.invoked_subcommand is not None:
        return
    found: Sequence[_Listed] = ()

    async def work() -> None:
        nonlocal found
        jobs = target.find_jobs()
        # Without an application, it is not known what its code declares.
        declared = None if jobs is None else jobs.declared_schedules
        async with open_repository(target) as repository:
            found = _listed(await read_schedules(repository, declared or ()), declared)

    run_async(work)
    if as_json:
        print_json({"schedules": [_document(one) for one in found]})
    else:
        heads = ("name", "type", "when", "next", "last", "job", "status")
        print_rows(heads, [_row(one) for one in found])


@schedules.command()
@with_target
@click.argument("name")
@as_json
def pause(target: Target, *, name: str, as_json: bool) -> None:
    """Let a schedule enqueue no jobs until it is resumed."""
    _change(target, name, "paused", lambda it: set_paused(it, name, paused=True), as_json=as_json)


@schedules.command()
@with_target
@click.argument("name")
@as_json
def resume(target: Target, *, name: str, as_json: bool) -> None:
    """Let a paused schedule go on."""
    _change(target, name, "resumed", lambda it: set_paused(it, name, paused=False), as_json=as_json)


@schedules.command()
@with_target
@click.argument("name")
@as_json
def remove(target: Target, *, name: str, as_json: bool) -> None:
    """Forget a schedule that no code declares any more; its jobs stay.

    It returns while a running application declares it.
    """
    jobs = target.find_jobs()
    if jobs is not None and name in jobs.declared_schedules:
        raise ConfigurationError(
            f"Schedule {name!r} is declared by {target.jobs}: remove its declaration first."
        )
    _change(target, name, "removed", lambda it: remove_record(it, name), as_json=as_json)
    if jobs is None and not as_json:
        click.echo("It returns if a running application declares it.")


@schedules.command()
@with_target
@click.argument("name")
@as_json
def run(target: Target, *, name: str, as_json: bool) -> None:
    """Enqueue a job of a schedule now; needs --jobs."""
    jobs = target.find_jobs()
    if jobs is None:
        raise click.UsageError(
            "The job of a schedule is declared by an application: give it with --jobs "
            "MODULE:ATTRIBUTE."
        )

    async def work() -> None:
        async with jobs.open(run_handlers=False):
            handle = await jobs.run_schedule_now(name)
        if as_json:
            print_json(listed_document(handle.job))
        else:
            click.echo(f"{handle.id} was enqueued")

    run_async(work)


def _change(
    target: Target,
    name: str,
    done: str,
    change: Callable[[Repository], Awaitable[None]],
    *,
    as_json: bool,
) -> None:
    async def work() -> None:
        async with open_repository(target) as repository:
            await change(repository)

    run_async(work)
    if as_json:
        print_json({"name": name, "done": done})
    else:
        click.echo(f"{name} is {done}")


@dataclass(frozen=True)
class _Listed:
    """A schedule, whether the store has it, and whether the application declares it, if known."""

    schedule: Schedule
    stored: bool
    declared: bool | None


def _listed(
    stored: Iterable[Schedule], declared: Mapping[str, Declared] | None
) -> Sequence[_Listed]:
    """Return the schedules of the store and those that are only declared, by name."""
    found = {
        one.name: _Listed(one, stored=True, declared=None if declared is None else one.declared)
        for one in stored
    }
    for name, one in (declared or {}).items():
        if name not in found:
            new = Schedule(name=name, **vars(one.definition), declared=True)
            found[name] = _Listed(new, stored=False, declared=True)
    return [found[name] for name in sorted(found)]


def _document(listed: _Listed) -> dict[str, Any]:
    one = listed.schedule
    return {
        "name": one.name,
        "type": one.type,
        "cron": one.cron,
        "timezone": one.timezone,
        "every": None if one.every is None else one.every.total_seconds(),
        "missed": one.missed,
        "paused": one.paused,
        "nextAt": one.next_at,
        "lastAt": one.last_at,
        "lastJobId": one.last_job,
        "lastStatus": one.last_status,
        "declared": listed.declared,
        "stored": listed.stored,
    }


def _row(listed: _Listed) -> tuple[str, ...]:
    one = listed.schedule
    upcoming = "paused" if one.paused else _moment(one.next_at)
    if not listed.stored:
        upcoming = "not stored yet"
    elif listed.declared is False:
        upcoming += " (not declared)"
    return (
        one.name,
        one.type,
        _when(one),
        upcoming,
        _moment(one.last_at),
        one.last_job or "",
        one.last_status or "",
    )


def _when(one: Schedule) -> str:
    if one.every is None:
        return f"{one.cron} {one.timezone}"
    return f"every {_interval(one.every)}"


def _interval(every: timedelta) -> str:
    """Return an interval in its largest whole unit."""
    for unit, word in (
        (timedelta(days=1), "d"),
        (timedelta(hours=1), "h"),
        (timedelta(minutes=1), "m"),
    ):
        if not every % unit:
            return f"{every // unit}{word}"
    return f"{every.total_seconds():g}s"


def _moment(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"

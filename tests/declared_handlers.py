"""Handlers declared without a queue, as in an application's module."""

from __future__ import annotations

from datetime import timedelta

from asyncjobs import JobContext, Policy, Retry, handler


@handler("export", timeout=7, estimate=30, aliases=("old_export",))
async def export(rows: int, job: JobContext) -> str:
    return f"{job.type}: {rows}"


@handler("nightly", retry=Retry(max_attempts=5), policy=Policy(queue="slow", timeout=8))
def nightly() -> int:
    return 7


def not_a_handler() -> timedelta:
    return timedelta(0)

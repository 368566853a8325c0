"""Handlers that are declared without a queue, and included in one or more."""

from __future__ import annotations

import types
from datetime import timedelta
from typing import Any, cast

import pytest

from asyncjobs import AsyncJobs, JobContext, Policy, Retry, handler
from asyncjobs.errors import ConfigurationError
from asyncjobs.testing import sample_job
from tests import declared_handlers
from tests.declared_handlers import export, nightly
from tests.queues import Make, finished, settled

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]


async def test_the_handlers_of_a_module_run_once_they_are_included(jobs: AsyncJobs) -> None:
    jobs.include(declared_handlers)
    async with jobs:
        done = await finished(jobs, export, 3)
        assert export.result_of(done) == "export: 3"
        assert await (await jobs.enqueue(nightly)).result(timeout=60) == 7
        assert jobs.expected_duration(export) == timedelta(seconds=30)


@pytest.mark.parametrize(
    "what", [(export, nightly), ([export], [nightly]), ({export, nightly},), ((nightly,), export)]
)
def test_handlers_are_included_alone_or_in_iterables(jobs: AsyncJobs, what: Any) -> None:
    jobs.include(*what)
    assert {one.name for one in jobs.registry} == {"export", "nightly"}


async def test_a_declared_handler_can_be_called_like_its_function() -> None:
    assert await export(3, JobContext(sample_job(type="export"))) == "export: 3"
    assert nightly() == 7


async def test_a_handler_in_several_queues_has_the_limits_of_each(
    make: Make,
) -> None:
    often = Retry(max_attempts=9)
    one = make(policy=Policy(retention=None, timeout=60))
    other = make(policy=Policy(retry=often, max_payload_bytes=4))
    for jobs in (one, other):
        jobs.include(declared_handlers)
    limits = [jobs.registry.find(export).policy for jobs in (one, other)]
    assert [it.timeout for it in limits] == [timedelta(seconds=7)] * 2
    assert [it.retention for it in limits] == [None, Policy().retention]
    assert [it.retry for it in limits] == [Retry(), often]
    night = other.registry.find(nightly).policy
    assert (night.queue, night.timeout, night.retry) == (
        "slow",
        timedelta(seconds=8),
        Retry(max_attempts=5),
    )
    async with one, other:
        for jobs in (one, other):
            assert (await finished(jobs, export, 3)).result == "export: 3"


def test_including_a_handler_again_changes_nothing(jobs: AsyncJobs) -> None:
    jobs.include(declared_handlers)
    before = list(jobs.registry)
    jobs.include(declared_handlers, export)
    assert list(jobs.registry) == before


async def test_a_handler_that_is_not_included_is_refused_with_the_remedy(jobs: AsyncJobs) -> None:
    async with jobs:
        with pytest.raises(ConfigurationError, match=r"'export' is not included.*jobs\.include"):
            await jobs.enqueue(export, 3)
    jobs.handler("export")(export.function)
    with pytest.raises(ConfigurationError, match=r"'export' is not included.*jobs\.include"):
        jobs.registry.find(export)


def test_a_name_that_is_taken_is_refused(jobs: AsyncJobs) -> None:
    jobs.handler("export")(export.function)
    with pytest.raises(ConfigurationError, match="'export' is registered twice"):
        jobs.include(export)


def test_including_an_object_without_handlers_is_refused(jobs: AsyncJobs) -> None:
    registered = AsyncJobs("memory://").handler("export")(export.function)
    empty = types.ModuleType("empty")
    empty.registered = registered  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="Module empty has no handlers to include"):
        jobs.include(empty)
    with pytest.raises(ConfigurationError, match=r"registered by @jobs\.handler on a queue"):
        jobs.include(registered)
    with pytest.raises(ConfigurationError, match="not_a_handler is not a handler"):
        jobs.include(cast("Any", declared_handlers.not_a_handler))
    with pytest.raises(ConfigurationError, match="not_a_handler is not a handler"):
        jobs.include([cast("Any", declared_handlers.not_a_handler)])


def test_mistakes_raise_at_the_declaration_of_a_handler() -> None:
    with pytest.raises(ConfigurationError, match=r'write @handler\("nightly"\)'):
        handler(cast("Any", nightly.function))
    with pytest.raises(ConfigurationError, match="timeout"):
        handler("never", timeout=-1)
    with pytest.raises(ConfigurationError, match="run_in"):
        handler("never", run_in=cast("Any", "thread"))
    with pytest.raises(ConfigurationError, match="estimate"):
        handler("never", estimate=-1)
    with pytest.raises(ConfigurationError, match="aliases"):
        handler("never", aliases="old")


async def test_jobs_that_wait_under_an_alias_run_and_keep_their_type(make: Make) -> None:
    before, now = make(), make()
    old_export = before.handler("old_export")(export.function)
    now.include(declared_handlers)
    await before.open(run_handlers=False)
    try:
        waiting = await before.enqueue(old_export, 3)
    finally:
        await before.close()
    async with now:
        done = await settled(now, waiting.id)
        assert (done.type, done.result) == ("old_export", "old_export: 3")
        assert export.result_of(done) == "old_export: 3"
        assert (await finished(now, "old_export", 4)).type == "export"

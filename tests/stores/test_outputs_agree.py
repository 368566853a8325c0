"""Any sequence of calls for output: every store answers as the memory store does."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asyncjobs.core import lifecycle
from asyncjobs.core.output import Append, ReadFrom, StreamKind
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, begun, change_of
from tests.stores.machines import OnPostgres, OnRedis, folder_until

STREAMS = ("log", "items", "ä\0\\0")
JOBS = st.integers(0, 2)

APPENDS = st.builds(
    Append,
    job_id=JOBS,
    stream=st.sampled_from(STREAMS),
    kind=st.sampled_from([*StreamKind, StreamKind.TEXT, StreamKind.TEXT]),
    epoch=st.integers(1, 3),
    items=st.integers(1, 4),
    data=st.binary(max_size=5) | st.just(b"x" * 3000),
    max_items=st.sampled_from([30, 10**6]),
    max_bytes=st.sampled_from([4000, 10**6]),
    position=st.none() | st.integers(0, 12),
)


class OutputsAgree(RuleBasedStateMachine):
    """A store beside the memory store, with the output of three jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.model = MemoryStore()
        self.store: Any = self.make_store()
        self.opened = self.portal.wrap_async_context_manager(self.store)
        self.opened.__enter__()
        self.jobs = [begun(sample_job()) for _ in range(3)]
        self.repeatable: list[Append] = []
        self.both("insert", self.jobs)

    def make_store(self) -> Any:
        return SqliteStore(folder_until(self.stack) / "jobs.db")

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)
        self.stack.close()

    def both(self, method: str, *args: Any) -> list[Any]:
        expected = self.portal.call(getattr(self.model, method), *args)
        answer = self.portal.call(getattr(self.store, method), *args)
        if expected is None:
            assert answer is None
            return []
        assert [*answer] == [*expected]
        return [*expected]

    @rule(appends=st.lists(APPENDS, min_size=1, max_size=5), at_the_end=st.booleans())
    def append(self, appends: list[Append], *, at_the_end: bool) -> None:
        calls = [replace(one, job_id=self.jobs[int(one.job_id)].id) for one in appends]
        if at_the_end:
            calls = [replace(calls[0], position=self.end_of(calls[0]))]
            self.repeatable += calls
        self.both("append", calls)

    def end_of(self, one: Append) -> int:
        [part] = self.both("read_output", [ReadFrom(one.job_id, one.stream, 10**9, 1)])
        return part.end if part else 0

    @rule(place=st.integers(0, 20))
    def repeat(self, place: int) -> None:
        if place < len(self.repeatable):
            self.both("append", [self.repeatable[-1 - place]])

    @rule(number=JOBS, epoch=st.integers(1, 3))
    def begin_epoch(self, number: int, epoch: int) -> None:
        self.both("begin_epoch", self.jobs[number].id, epoch)

    @rule(number=JOBS)
    def end(self, number: int) -> None:
        job = self.jobs[number]
        [stored] = self.both("get", [job.id])
        if stored is not None and not stored.status.terminal:
            done = lifecycle.complete(job, NOW, token="t", result=b"1")
            assert self.both("replace", [change_of(job, done)]) == [True]

    @rule(number=JOBS, again=st.booleans())
    def delete(self, number: int, *, again: bool) -> None:
        self.both("delete", [self.jobs[number].id])
        if again:
            self.both("insert", [self.jobs[number]])

    @rule(
        reads=st.lists(
            st.tuples(JOBS, st.sampled_from(STREAMS), st.integers(0, 20), st.integers(0, 5000)),
            min_size=1,
            max_size=4,
        )
    )
    def read(self, reads: list[tuple[int, str, int, int]]) -> None:
        asked = [ReadFrom(self.jobs[one].id, name, at, most) for one, name, at, most in reads]
        self.both("read_output", asked)

    @rule()
    def reopen(self) -> None:
        self.opened.__exit__(None, None, None)
        self.opened = self.portal.wrap_async_context_manager(self.store)
        self.opened.__enter__()

    @invariant()
    def streams_agree(self) -> None:
        self.both("outputs", [job.id for job in self.jobs])


class RedisOutputsAgree(OnRedis, OutputsAgree):
    """The same on a server."""


class PostgresOutputsAgree(OnPostgres, OutputsAgree):
    """The same on a server."""


LIMITS = settings(max_examples=15, stateful_step_count=30)

TestSqliteOutputsAgree = OutputsAgree.TestCase
TestSqliteOutputsAgree.settings = LIMITS
TestRedisOutputsAgree = pytest.mark.usefixtures("redis_for_machines")(RedisOutputsAgree.TestCase)
TestRedisOutputsAgree.settings = LIMITS
TestPostgresOutputsAgree = pytest.mark.usefixtures("postgres_for_machines")(
    PostgresOutputsAgree.TestCase
)
TestPostgresOutputsAgree.settings = LIMITS

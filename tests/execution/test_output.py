"""Handlers emit output: stored in order, once, before the outcome, and only by the last attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from annotated_types import Gt
from fast_depends import Depends
from pydantic import BaseModel

from asyncjobs import AsyncJobs, Job, JobContext, JobStatus, OutputItem, Policy, Retry
from asyncjobs.core.job import JobId
from asyncjobs.core.output import MAX_STREAMS, StreamKind
from asyncjobs.errors import (
    ConfigurationError,
    InvalidOutput,
    NotAwaited,
    OutputTooLarge,
    UnknownJob,
)
from asyncjobs.protocols import OutputStreams
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, run_jobs_async
from asyncjobs.testing.samples import sample_job
from tests.execution import handlers_in_processes
from tests.queues import Make, finished, running, settled
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

AT_ONCE = timedelta(0)


class Forgetful(MemoryStore):
    """A store that does not keep output."""

    powers = MemoryStore.powers - {OutputStreams}


class Token(BaseModel):
    """An item with a type."""

    word: str
    weight: Annotated[float, Gt(0)] = 1.0


async def output(jobs: AsyncJobs, job_id: JobId, stream: str = "output") -> list[OutputItem]:
    with anyio.fail_after(PATIENCE_SECONDS):
        return [item async for item in jobs.output(job_id, stream)]


async def values(jobs: AsyncJobs, job: Job, stream: str = "output") -> list[Any]:
    return [item.value for item in await output(jobs, job.id, stream)]


# what handlers can emit


async def test_items_are_read_in_order_with_their_positions(jobs: AsyncJobs) -> None:
    @jobs.handler("count")
    async def count(number: int, job: JobContext) -> str:
        for value in range(number):
            await job.emit({"value": value})
        return "done"

    async with jobs:
        job = await finished(jobs, count, 3)
        assert job.result == "done"
        assert await output(jobs, job.id) == [
            OutputItem({"value": value}, position=value + 1, epoch=1) for value in range(3)
        ]
        after = [item.value async for item in jobs.output(job.id, after=1)]
        assert after == [{"value": 1}, {"value": 2}]


async def test_a_reader_gets_items_while_the_job_runs(jobs: AsyncJobs) -> None:
    go = [anyio.Event() for _ in range(3)]

    @jobs.handler("step")
    async def step(job: JobContext) -> None:
        for number, event in enumerate(go):
            await event.wait()
            await job.emit(number)

    async with jobs:
        handle = await jobs.enqueue(step, None)
        items = handle.output()
        with anyio.fail_after(PATIENCE_SECONDS):
            for number, event in enumerate(go):
                event.set()
                assert (await anext(items)).value == number
            with pytest.raises(StopAsyncIteration):
                await anext(items)


async def test_another_process_reads_the_same(make: Make) -> None:
    here, there = make(), make()

    @here.handler("count")
    async def count(number: int, job: JobContext) -> None:
        for value in range(number):
            await job.emit(value)

    async with here, there.open(run_handlers=False):
        handle = await here.enqueue(count, 20)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert [one.value async for one in there.output(handle.id)] == [*range(20)]


async def test_streams_have_names_and_kinds(jobs: AsyncJobs) -> None:
    @jobs.handler("mixed")
    async def mixed(job: JobContext) -> None:
        await job.emit("tokens ")
        await job.stream("log").emit("zwölf")
        await job.stream("raw").emit(b"\xff\x00")
        await job.stream("words", kind="json").emit("a word")
        await job.stream("numbers").emit(1.5)
        await job.emit("as text")
        await job.emit("")

    async with jobs:
        job = await finished(jobs, mixed)
        assert "".join(await values(jobs, job)) == "tokens as text"
        assert await values(jobs, job, "log") == ["zwölf"]
        assert await values(jobs, job, "raw") == [b"\xff\x00"]
        assert await values(jobs, job, "words") == ["a word"]
        assert await values(jobs, job, "numbers") == [1.5]
        [infos] = await jobs.outputs([job.id])
        assert [(one.name, one.kind, one.bytes) for one in infos] == [
            ("log", StreamKind.TEXT, 6),
            ("numbers", StreamKind.JSON, 3),
            ("output", StreamKind.TEXT, 14),
            ("raw", StreamKind.BYTES, 2),
            ("words", StreamKind.JSON, 8),
        ]


async def test_a_def_emits_in_its_thread(jobs: AsyncJobs) -> None:
    @jobs.handler("thread")
    def thread(number: int, job: JobContext) -> int:
        for value in range(number):
            job.emit(value)
        job.stream("log").emit("done")
        return number

    async with jobs:
        job = await finished(jobs, thread, 5)
        assert job.result == 5
        assert await values(jobs, job) == [0, 1, 2, 3, 4]
        assert await values(jobs, job, "log") == ["done"]


async def test_a_thread_of_an_async_def_may_emit(jobs: AsyncJobs) -> None:
    @jobs.handler("both")
    async def both(job: JobContext) -> None:
        await job.emit(1)
        await anyio.to_thread.run_sync(job.emit, 2)
        await job.emit(3)

    async with jobs:
        assert await values(jobs, await finished(jobs, both)) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["emits", "emits async", "yields", "yields async"])
async def test_a_child_process_emits_through_its_parent(jobs: AsyncJobs, kind: str) -> None:
    jobs.include(*handlers_in_processes.emitting)
    async with jobs:
        job = await finished(jobs, kind, 30)
        assert (job.status, job.result) == (JobStatus.COMPLETED, 30)
        assert await values(jobs, job) == [*range(30)]


async def test_an_error_in_a_child_process_is_that_of_the_item(jobs: AsyncJobs) -> None:
    jobs.include(*handlers_in_processes.emitting)
    async with jobs:
        job = await finished(jobs, "emits", -1)
        assert job.error is not None
        assert job.error.code == "invalid_output"
        assert "valid integer" in job.error.message


async def test_concurrent_tasks_of_a_handler_emit_each_item_once(jobs: AsyncJobs) -> None:
    @jobs.handler("tasks")
    async def tasks(job: JobContext) -> None:
        async def some(first: int) -> None:
            for value in range(first, first + 10):
                await job.emit(value)

        async with anyio.create_task_group() as group:
            for first in (0, 100, 200):
                group.start_soon(some, first)

    async with jobs:
        found = await values(jobs, await finished(jobs, tasks))
        for first in (0, 100, 200):
            mine = [value for value in found if first <= value < first + 100]
            assert mine == [*range(first, first + 10)]
        assert len(found) == 30


# generators


async def test_an_async_generator_yields_typed_items(jobs: AsyncJobs) -> None:
    @jobs.handler("tokens")
    async def tokens(text: str, job: JobContext) -> AsyncIterator[Token]:
        for word in text.split():
            yield Token(word=word)
        job.set_result({"words": len(text.split())})

    async with jobs:
        job = await finished(jobs, tokens, "a b")
        assert job.result == {"words": 2}
        assert await values(jobs, job) == [
            {"word": "a", "weight": 1.0},
            {"word": "b", "weight": 1.0},
        ]


async def test_a_generator_without_a_result_completes_with_none(jobs: AsyncJobs) -> None:
    @jobs.handler("text")
    async def text(_payload: None) -> AsyncIterator[str]:
        yield "one "
        yield "two"

    async with jobs:
        job = await finished(jobs, text)
        assert (job.status, job.result) == (JobStatus.COMPLETED, None)
        assert "".join(await values(jobs, job)) == "one two"


async def test_a_generator_in_a_thread_may_return_its_result(jobs: AsyncJobs) -> None:
    @jobs.handler("lines")
    def lines(number: int) -> Generator[bytes, None, int]:
        for line in range(number):
            yield b"%d\n" % line
        return number

    @jobs.handler("plain")
    def plain(number: int, job: JobContext) -> Iterator[int]:
        yield from range(number)
        job.set_result("set")

    async with jobs:
        job = await finished(jobs, lines, 3)
        assert job.result == 3
        assert b"".join(await values(jobs, job)) == b"0\n1\n2\n"
        job = await finished(jobs, plain, 3)
        assert job.result == "set"
        assert await values(jobs, job) == [0, 1, 2]


async def test_a_generator_is_closed_when_its_job_is_cancelled(jobs: AsyncJobs) -> None:
    closed: list[str] = []

    @jobs.handler("endless")
    async def endless(_payload: None) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await anyio.sleep(0.001)
        finally:
            closed.append("async")

    @jobs.handler("endless thread")
    def in_thread(_payload: None) -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append("thread")

    async with jobs:
        for handler in (endless, in_thread):
            job = await running(jobs, handler)
            await anext(jobs.output(job.id))
            await jobs.cancel(job.id)
            assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED
            [[info]] = await jobs.outputs([job.id])
            assert await values(jobs, job) == [1] * info.items
        await until(lambda: sorted(closed) == ["async", "thread"])


def get_prefix() -> Generator[str]:
    yield "a "
    cleaned.append("prefix")


cleaned: list[str] = []


async def test_a_generator_may_have_dependencies(jobs: AsyncJobs) -> None:
    cleaned.clear()

    @jobs.handler("with")
    async def with_prefix(
        number: int, prefix: Annotated[str, Depends(get_prefix)]
    ) -> AsyncIterator[str]:
        for value in range(number):
            assert not cleaned
            yield f"{prefix}{value} "

    async with jobs:
        job = await finished(jobs, with_prefix, 2)
        assert "".join(await values(jobs, job)) == "a 0 a 1 "
        assert cleaned == ["prefix"]


# mistakes


async def test_an_emit_that_is_not_awaited_fails_the_attempt(jobs: AsyncJobs) -> None:
    caught: list[BaseException] = []

    @jobs.handler("last")
    async def last(job: JobContext) -> None:
        job.emit(1)

    @jobs.handler("next")
    async def next_one(job: JobContext) -> None:
        job.emit(1)
        await job.emit(2)

    @jobs.handler("swallowed")
    async def swallowed(job: JobContext) -> str:
        job.stream("log").emit("1")
        try:
            await job.emit(2)
        except Exception as error:  # noqa: BLE001  # as careless handlers do
            caught.append(error)
        return "fine"

    async with jobs:
        for handler in (last, next_one, swallowed):
            job = await finished(jobs, handler)
            assert job.status is JobStatus.FAILED
            [error] = job.attempt_errors
            assert error.type == "NotAwaited"
            assert "await job.emit(item)" in error.message
            assert await jobs.outputs([job.id]) == [[]]
    assert [type(error) for error in caught] == [NotAwaited]
    assert isinstance(caught[0], RuntimeError)


async def test_items_may_be_awaited_together_and_by_other_tasks(jobs: AsyncJobs) -> None:
    async def gather(*emissions: Awaitable[None]) -> None:
        async def one(emission: Awaitable[None]) -> None:
            await emission

        async with anyio.create_task_group() as tasks:
            for emission in emissions:
                tasks.start_soon(one, emission)

    @jobs.handler("together")
    async def together(job: JobContext) -> None:
        await gather(job.emit(0), job.stream("log").emit("x"))

        async def count(start: int) -> None:
            for number in range(3):
                emission = job.emit(start + number)
                await anyio.lowlevel.checkpoint()
                await emission

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count, 10)
            tasks.start_soon(count, 20)

    async with jobs:
        job = await finished(jobs, together)
        assert job.status is JobStatus.COMPLETED
        assert sorted(await values(jobs, job)) == [0, 10, 11, 12, 20, 21, 22]
        assert "".join(await values(jobs, job, "log")) == "x"


async def test_an_emit_that_is_kept_but_never_awaited_fails_the_attempt(jobs: AsyncJobs) -> None:
    kept: list[object] = []

    @jobs.handler("keep")
    async def keep(job: JobContext) -> None:
        kept.append(job.stream("log").emit("x"))
        await job.emit(1)

    async with jobs:
        job = await finished(jobs, keep)
        assert job.status is JobStatus.FAILED
        [error] = job.attempt_errors
        assert error.type == "NotAwaited"
        assert "'log'" in error.message


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (object(), "Unable to serialize"),
        ({1: {2: set}}, "Unable to serialize"),
        ("\ud800", "not valid Unicode"),
        (10**5000, "read back"),
    ],
    ids=["no JSON", "deep inside", "half a character", "long number"],
)
async def test_an_item_that_cannot_be_stored_fails_the_attempt(
    jobs: AsyncJobs, item: object, reason: str
) -> None:
    @jobs.handler("one")
    async def one(job: JobContext) -> None:
        await job.emit(item)

    async with jobs:
        job = await finished(jobs, one)
        assert job.error is not None
        assert job.error.code == "invalid_output"
        assert reason in job.error.message


async def test_items_must_fit_the_type_that_the_handler_declares(jobs: AsyncJobs) -> None:
    @jobs.handler("declared", output=Token, retry=Retry(max_attempts=3))
    async def declared(job: JobContext) -> None:
        await job.emit(Token(word="a"))  # no password
        await job.emit({"word": "b", "weight": 0})

    async with jobs:
        job = await finished(jobs, declared)
        assert job.error is not None
        assert (job.error.code, job.attempt) == ("invalid_output", 1)
        assert "weight" in job.error.message
        assert await values(jobs, job) == [{"word": "a", "weight": 1.0}]


async def test_a_stream_has_one_kind(jobs: AsyncJobs) -> None:
    @jobs.handler("mixed")
    async def mixed(job: JobContext) -> None:
        await job.emit("text")
        with pytest.raises(InvalidOutput, match="stream of text"):
            job.stream("output", kind="json")
        await job.emit({"no": "text"})

    async with jobs:
        job = await finished(jobs, mixed)
        assert job.error is not None
        assert "the stream consists of text, and the item is a dict" in job.error.message


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".", "x" * 65, "ä", "a\n"])
async def test_names_of_streams_are_checked(jobs: AsyncJobs, name: str) -> None:
    async with jobs:
        with pytest.raises(ValueError, match="name of a stream"):
            jobs.output(JobId("job"), name)
        with pytest.raises(ValueError, match="name of a stream"):
            jobs.sync.output(JobId("job"), name)


async def test_unknown_jobs_and_impossible_positions_are_errors(jobs: AsyncJobs) -> None:
    async with jobs:
        with pytest.raises(UnknownJob):
            await anext(jobs.output(JobId("job_unknown")))
        with pytest.raises(ValueError, match="position"):
            jobs.output(JobId("job_unknown"), after=-1)
        with pytest.raises(ValueError, match="position"):
            await jobs.next_output(JobId("job_unknown"), "output", -1)


@pytest.mark.parametrize(
    ("after", "error"),
    [(-1, ValueError), ("0000", TypeError), (True, TypeError), (1.0, TypeError), (4, ValueError)],
)
async def test_reading_after_what_is_no_position_is_an_error_and_does_not_wait(
    jobs: AsyncJobs, after: Any, error: type[Exception]
) -> None:
    @jobs.handler("count")
    async def count(job: JobContext) -> None:
        for value in range(3):
            await job.emit(value)

    async with jobs:
        handle = await jobs.enqueue(count, None)
        await handle.wait()
        with pytest.raises(error, match="osition"):
            await anext(handle.output(after=after))
        with pytest.raises(error, match="osition"):
            await anyio.to_thread.run_sync(
                lambda: next(jobs.sync.output(handle.id, after=after)), abandon_on_cancel=True
            )
        assert [item.value async for item in handle.output(after=3)] == []


async def test_a_position_after_the_end_is_an_error_while_the_job_runs_too(
    jobs: AsyncJobs,
) -> None:
    jobs.external("outside", payload=int, result=int)
    async with jobs:
        handle = await jobs.enqueue("outside", 1)
        with pytest.raises(ValueError, match="after the end of the stream, 0"):
            await anext(handle.output(after=1))
        with pytest.raises(ValueError, match="after the end of the stream, 0"):
            await anyio.to_thread.run_sync(lambda: next(jobs.sync.output(handle.id, after=1)))


def test_a_type_is_declared_once(make: Make) -> None:
    jobs = make()

    async def yields() -> AsyncIterator[str]:
        yield ""

    with pytest.raises(ConfigurationError, match="leave out `output`"):
        jobs.handler("twice", output=str)(yields)


async def test_a_context_made_by_hand_cannot_emit() -> None:
    with pytest.raises(ConfigurationError, match="by hand"):
        JobContext[None](sample_job()).emit(1)


# limits


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (Policy(max_output_items=3), "max_output_items"),
        (Policy(max_output_bytes=5), "max_output_bytes"),
        (Policy(), ""),
    ],
    ids=["items", "bytes", "streams"],
)
async def test_output_is_limited(jobs: AsyncJobs, policy: Policy, named: str) -> None:
    """Clients see the limit, and operators the option that sets it."""
    limit = f"{getattr(policy, named)} {named[11:]}" if named else f"{MAX_STREAMS} streams"

    @jobs.handler("many", policy=policy)
    async def many(job: JobContext) -> None:
        wide = policy == Policy()
        for number in range(100):
            await job.stream(f"s{number}" if wide else "output").emit(number % 10)

    async with jobs:
        job = await finished(jobs, many)
        assert job.error is not None
        assert job.error.code == "output_too_large"
        assert f"at most {limit}." in job.error.message
        assert "Policy" not in job.error.message
        [error] = job.attempt_errors
        assert f"Policy.{named}" in error.traceback or not named
        assert (await jobs.outputs([job.id]))[0] != []


async def test_a_handler_may_go_on_without_output_at_the_limit(jobs: AsyncJobs) -> None:
    @jobs.handler("many", policy=Policy(max_output_items=2))
    async def many(job: JobContext) -> str:
        try:
            for number in range(5):
                await job.emit(number)
        except OutputTooLarge as error:
            return str(error.limit)
        return "no limit"

    async with jobs:
        job = await finished(jobs, many)
        assert job.result == "2"
        assert await values(jobs, job) == [0, 1]


async def test_a_long_text_is_stored_in_parts_that_end_with_characters(jobs: AsyncJobs) -> None:
    wide = "xä€" * 150_000

    @jobs.handler("long")
    async def long(job: JobContext) -> None:
        await job.emit(wide)

    async with jobs:
        job = await finished(jobs, long)
        parts = await values(jobs, job)
        assert len(parts) > 1
        assert "".join(parts) == wide
        [[info]] = await jobs.outputs([job.id])
        assert info.items == 1


# collected items


@pytest.mark.parametrize("threaded", [False, True])
async def test_collected_items_are_stored_together_and_before_the_outcome(
    make: Make, new_store: Callable[[], Any], *, threaded: bool
) -> None:
    store = FaultyStore(new_store())
    jobs, other = make(store=store), make()

    @jobs.handler("quick", emit_every=0.02)
    async def quick(number: int, job: JobContext) -> None:
        for value in range(number):
            await job.emit(value)

    @jobs.handler("quick thread", emit_every=0.02)
    def quick_thread(number: int, job: JobContext) -> None:
        for value in range(number):
            job.emit(value)

    async with jobs, other.open(run_handlers=False):
        handle = await jobs.enqueue(quick_thread if threaded else quick, 3000)
        await settled(other, handle.id)
        assert await values(other, handle.job) == [*range(3000)]
    assert sum(call.method == "append" for call in store.calls) < 1000


async def test_collected_items_reach_readers_while_the_handler_waits(jobs: AsyncJobs) -> None:
    done = anyio.Event()

    @jobs.handler("slow", emit_every=0.01)
    async def slow(job: JobContext) -> None:
        await job.emit("a")
        await job.emit("b")
        await done.wait()

    async with jobs:
        handle = await jobs.enqueue(slow, None)
        with anyio.fail_after(PATIENCE_SECONDS):
            seen = ""
            items = handle.output()
            while seen != "ab":
                seen += (await anext(items)).value
        done.set()
        await settled(jobs, handle.id)


async def test_an_error_of_collected_items_fails_the_attempt(jobs: AsyncJobs) -> None:
    @jobs.handler("many", emit_every=0.5, policy=Policy(max_output_items=2))
    async def many(job: JobContext) -> None:
        for number in range(5):
            await job.emit(number)

    async with jobs:
        job = await finished(jobs, many)
        assert job.error is not None
        assert job.error.code == "output_too_large"


@pytest.mark.parametrize(
    ("policy", "items", "stored"),
    [
        (Policy(max_output_items=10), [*range(15)], 10),
        (Policy(max_output_bytes=10), [*"abcdefghijklmno"], 10),
        (Policy(max_output_bytes=10), [1] * 15, 6),  # the commas count
    ],
    ids=["items", "text", "json"],
)
async def test_collected_items_below_the_limit_are_stored(
    jobs: AsyncJobs, policy: Policy, items: list[Any], stored: int
) -> None:
    @jobs.handler("many", emit_every=0.05, policy=policy)
    async def many(job: JobContext) -> None:
        for item in items:
            await job.emit(item)

    async with jobs:
        job = await finished(jobs, many)
        assert job.error is not None
        assert job.error.code == "output_too_large"
        found = await values(jobs, job)
        assert (found if items[0] != "a" else [*"".join(found)]) == items[:stored]


async def test_items_that_tasks_emit_together_are_stored_up_to_the_limit(jobs: AsyncJobs) -> None:
    returned: list[int] = []

    @jobs.handler("many", policy=Policy(max_output_items=10))
    async def many(job: JobContext) -> None:
        async def emit(number: int) -> None:
            with suppress(OutputTooLarge):
                await job.emit(number)
                returned.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(15):
                tasks.start_soon(emit, number)

    async with jobs:
        job = await finished(jobs, many)
        found = await values(jobs, job)
        assert len(found) == 10
        assert sorted(returned) == sorted(found)


async def test_a_handler_waits_for_the_store_when_the_buffer_is_full(
    make: Make, new_store: Callable[[], Any]
) -> None:
    store = FaultyStore(new_store())
    jobs = make(store=store)
    emitted: list[int] = []
    wide = "x" * 10_000

    @jobs.handler("wide", emit_every=0.01)
    async def emit_wide(job: JobContext) -> None:
        for number in range(400):
            await job.emit(wide)
            emitted.append(number)

    async with jobs:
        store.faults = Faults(before=1, only={"append"})
        handle = await jobs.enqueue(emit_wide, None)
        await until(lambda: sum(call.method == "append" for call in store.calls) > 3)
        assert len(emitted) < 250  # two megabytes: what waits, and what is under way
        store.faults = Faults()
        await settled(jobs, handle.id)
        assert len("".join(await values(jobs, handle.job))) == 400 * len(wide)


# faults


@pytest.mark.parametrize("every", [0, 0.005])
async def test_items_are_neither_lost_nor_doubled_while_the_store_fails(
    make: Make, new_store: Callable[[], Any], every: float
) -> None:
    store = FaultyStore(new_store(), seed=7)
    jobs = make(store=store)

    @jobs.handler("count", emit_every=every)
    async def count(number: int, job: JobContext) -> None:
        for value in range(number):
            await job.emit(value)
            await job.stream("log").emit(f"{value} ")

    async with jobs:
        store.faults = Faults(before=0.2, after=0.3, only={"append", "outputs", "begin_epoch"})
        job = await finished(jobs, count, 25)
        store.faults = Faults()
        assert job.status is JobStatus.COMPLETED
        assert await values(jobs, job) == [*range(25)]
        assert "".join(await values(jobs, job, "log")) == "".join(f"{n} " for n in range(25))


async def test_a_retry_continues_the_stream_in_the_next_epoch(jobs: AsyncJobs) -> None:
    @jobs.handler("twice", retry=Retry(max_attempts=2, initial_delay=AT_ONCE))
    async def twice(job: JobContext) -> None:
        for number in range(3):
            await job.emit([job.attempt, number])
        if job.attempt == 1:
            raise LookupError

    async with jobs:
        job = await finished(jobs, twice)
        found = await output(jobs, job.id)
        assert [item.value for item in found] == [[a, n] for a in (1, 2) for n in range(3)]
        assert [item.epoch for item in found] == [1, 1, 1, 2, 2, 2]
        assert [item.position for item in found] == [1, 2, 3, 4, 5, 6]


async def test_an_attempt_that_lost_its_job_can_emit_nothing_more(
    make: Make, new_store: Callable[[], Any]
) -> None:
    store = FaultyStore(new_store())
    first, second = make(store=store), make()
    emitted, begun = anyio.Event(), anyio.Event()
    stale: list[object] = []

    async def emit(job: JobContext) -> None:
        if job.attempt > 1:
            begun.set()
            await until(lambda: stale)
            await job.emit(f"attempt {job.attempt}")
            return
        await job.emit("attempt 1 ")
        emitted.set()
        try:
            with anyio.CancelScope(shield=True):
                await begun.wait()
                await job.emit("stale")
                stale.append("stored")
        except BaseException as error:
            stale.append(error)
            raise

    first.handler("emit")(emit)
    second.handler("emit")(emit)
    async with first:
        handle = await first.enqueue("emit", None)
        await emitted.wait()
        # Its lease lapses, because it is not renewed; another process runs the job.
        store.faults = Faults(before=1, only={"replace"})
        async with second:
            job = await settled(second, handle.id)
            assert "stored" not in stale
            assert job.attempt == 2
            assert "".join(await values(second, job)) == "attempt 1 attempt 2"


async def test_jobs_without_output_cost_no_call_of_the_store(
    make: Make, new_store: Callable[[], Any]
) -> None:
    store = FaultyStore(new_store())
    jobs = make(store=store)

    @jobs.handler("plain")
    async def plain(number: int, _job: JobContext) -> int:
        return number

    @jobs.handler("emits")
    async def emits(number: int, job: JobContext) -> int:
        await job.emit(number)
        return number

    async with jobs:
        store.calls.clear()
        await finished(jobs, plain, 1)
        calls = {call.method for call in store.calls}
        assert not calls & {"append", "begin_epoch", "read_output", "outputs"}
        await finished(jobs, emits, 1)
        calls = {call.method for call in store.calls}
        assert calls & {"append", "begin_epoch", "read_output", "outputs"} == {"append"}


async def test_a_store_without_output_refuses_it(make: Make) -> None:
    jobs = make(store=Forgetful())

    @jobs.handler("emits", retry=Retry(max_attempts=2, initial_delay=AT_ONCE))
    async def emits(job: JobContext) -> None:
        await job.emit(1)

    async with jobs:
        job = await finished(jobs, emits)
        assert job.attempt == 2
        assert job.attempt_errors[0].type == "ConfigurationError"
        assert await jobs.outputs([job.id]) == [()]
        with pytest.raises(ConfigurationError, match="output"):
            jobs.output(job.id)


async def test_a_killed_process_leaves_a_prefix_and_the_retry_adds_its_own(
    jobs: AsyncJobs,
) -> None:
    jobs.include(*handlers_in_processes.emitting)
    async with jobs:
        job = await finished(jobs, "dies once", 4)
        assert (job.status, job.attempt) == (JobStatus.COMPLETED, 2)
        found = await output(jobs, job.id)
        assert [(item.epoch, item.value) for item in found] == [
            *((1, n) for n in range(4)),
            *((2, n) for n in range(4)),
        ]


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_handler_that_must_stop_while_it_emits_leaves_a_prefix(
    make: Make, new_store: Callable[[], Any], how: str
) -> None:
    store = FaultyStore(new_store())
    jobs = make(store=store)
    acknowledged: list[int] = []

    @jobs.handler("endless", timeout=0.5 if how == "timeout" else 60)
    async def endless(job: JobContext) -> None:
        number = 0
        while True:
            await job.emit(number)
            acknowledged.append(number)
            number += 1

    async with jobs:
        handle = await jobs.enqueue(endless, None)
        await until(lambda: acknowledged)
        if how == "cancel":
            await jobs.cancel(handle.id)
        job = await settled(jobs, handle.id)
        assert job.status is (JobStatus.CANCELLED if how == "cancel" else JobStatus.FAILED)
        found = await values(jobs, job)
        assert found[: len(acknowledged)] == acknowledged
        assert found == [*range(len(found))]
        assert len(found) <= len(acknowledged) + 1


async def test_an_emit_that_was_given_up_does_not_disturb_later_ones(
    make: Make, new_store: Callable[[], Any]
) -> None:
    store = FaultyStore(new_store())
    jobs = make(store=store)

    @jobs.handler("impatient")
    async def impatient(job: JobContext) -> None:
        await job.emit(0)
        store.faults = Faults(before=0.5, after=0.5, only={"append"})
        with anyio.move_on_after(0.05):
            await job.emit(1)
        store.faults = Faults()
        await job.emit(2)

    async with jobs:
        found = await values(jobs, await finished(jobs, impatient))
        assert found in ([0, 1, 2], [0, 2])


async def test_jobs_run_by_hand_emit_as_well(jobs: AsyncJobs) -> None:
    @jobs.handler("count")
    async def count(number: int, job: JobContext) -> None:
        for value in range(number):
            await job.emit(value)

    with jobs.using():
        async with jobs:
            handle = await jobs.enqueue(count, 2)
            with pytest.raises(ConfigurationError, match="run_jobs"):
                await anext(handle.output())
            await run_jobs_async(jobs)
            assert await values(jobs, handle.job) == [0, 1]


async def test_threads_read_output_until_the_end(jobs: AsyncJobs) -> None:
    @jobs.handler("count")
    async def count(number: int, job: JobContext) -> None:
        for value in range(number):
            await job.emit(value)

    async with jobs:
        handle = await jobs.enqueue(count, 40)
        read = await anyio.to_thread.run_sync(
            lambda: [item.value for item in jobs.sync.output(handle.id)]
        )
        assert read == [*range(40)]
        rest = await anyio.to_thread.run_sync(
            lambda: [item.value for item in jobs.sync.output(handle.id, after=38)]
        )
        assert rest == [38, 39]


async def test_output_is_deleted_with_its_job(jobs: AsyncJobs) -> None:
    @jobs.handler("count", policy=Policy(retention=AT_ONCE))
    async def count(job: JobContext) -> None:
        await job.emit(1)

    async with jobs:
        handle = await jobs.enqueue(count, None)

        async def gone() -> bool:
            return await jobs.get(handle.id) is None

        await until(gone)

        async def deleted() -> bool:
            [infos] = await jobs.outputs([handle.id])
            return not infos

        await until(deleted)
        with pytest.raises(UnknownJob):
            await anext(jobs.output(handle.id))

"""The hub of outputs: what readers get, how often the store is read, and when readers end."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job
from asyncjobs.core.output import (
    Append,
    Chunk,
    OutputPart,
    ReadFrom,
    StreamKind,
    after,
    numbered_items,
)
from asyncjobs.errors import StoreUnavailable, UnknownJob
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.output_hub import PORTION_BYTES, OutputHub, OutputReader, Portion
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore
from asyncjobs.testing.samples import NOW, begun, change_of, sample_job
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.anyio

MOST = 10**12


class World:
    """A store with one running job, and a hub that reads it."""

    def __init__(self, *, poll: float, kept: MemoryStore) -> None:
        self.kept = kept
        self.store = FaultyStore(self.kept)
        self.feed = ChangeFeed(poll=poll)
        self.hub = OutputHub(self.store, self.feed, poll=poll)
        self.job = begun(sample_job())

    async def append(self, data: bytes, *, here: bool, stream: str = "log") -> None:
        """Append text, in this process or in another one."""
        append = Append(self.job.id, stream, StreamKind.TEXT, 1, 1, data, MOST, MOST)
        answers = await self.kept.append([append])
        if here:
            self.hub.appended([append], answers)

    async def end(self) -> Job:
        ended = lifecycle.complete(self.job, NOW, token="t", result=b"1")
        await self.kept.replace([change_of(self.job, ended)])
        return ended

    @property
    def reads(self) -> int:
        return sum(call.method == "read_output" for call in self.store.calls)


class Gated(MemoryStore):
    """A store whose reads wait at a gate if it is shut, each until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: anyio.Semaphore | None = None
        self.begun = 0

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        self.begun += 1
        if self.gate is not None:
            await self.gate.acquire()
        return await super().read_output(reads)


class Distant(MemoryStore):
    """A store whose reads take a while."""

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        return await super().read_output(reads)


@asynccontextmanager
async def opened(*, poll: float = 3600, kept: MemoryStore | None = None) -> AsyncGenerator[World]:
    world = World(poll=poll, kept=kept or MemoryStore())
    await world.kept.insert([world.job])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.hub.run)
        yield world
        tasks.cancel_scope.cancel()


def text(portions: Sequence[Portion]) -> bytes:
    return b"".join(chunk.data for one in portions for chunk in one.chunks)


async def soon(reader: OutputReader) -> Portion:
    with anyio.fail_after(PATIENCE_SECONDS):
        return await anext(reader)


async def read_all(reader: OutputReader) -> list[Portion]:
    with anyio.fail_after(PATIENCE_SECONDS):
        return [portion async for portion in reader]


async def test_readers_get_what_there_is_then_each_append_and_the_end() -> None:
    async with opened() as world:
        await world.append(b"one ", here=True)
        reader = world.hub.reader(world.job.id, "log")
        first = await soon(reader)
        assert (text([first]), first.end, first.up_to_date, first.closed) == (
            b"one ",
            4,
            True,
            False,
        )
        await world.append(b"two ", here=True)
        await world.append(b"three", here=True)
        second = await soon(reader)
        assert (text([second]), second.position, second.end) == (b"two three", 4, 13)
        world.feed.announce(await world.end())
        last = await soon(reader)
        assert (last.chunks, last.closed) == ((), True)
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        assert world.hub.readers == world.feed.listeners == 0


async def test_appends_of_this_process_cost_no_read_however_many_readers_there_are() -> None:
    async with opened() as world:
        readers = [world.hub.reader(world.job.id, "log") for _ in range(1000)]
        for reader in readers:
            await reader.first()
        before = world.reads
        for number in range(20):
            await world.append(b"%02d" % number, here=True)
            for reader in readers:
                portion = reader.take()
                assert portion is not None
                assert text([portion]) == b"%02d" % number
        assert world.reads == before


async def test_an_append_of_another_process_costs_one_read_for_all_readers() -> None:
    async with opened() as world:
        readers = [world.hub.reader(world.job.id, "log") for _ in range(1000)]
        for reader in readers:
            await reader.first()
        before = world.reads
        for number in range(10):
            await world.append(b"x", here=False)
            world.feed.notice([world.job.id])
            chunks = {(await soon(reader)).chunks for reader in readers}
            assert chunks == {(Chunk(number, 1, 1, b"x"),)}
        assert world.reads == before + 10


async def test_notices_of_other_jobs_cost_no_read() -> None:
    async with opened() as world:
        reader = world.hub.reader(world.job.id, "log")
        await reader.first()
        await world.append(b"x", here=False)
        other = sample_job()
        before = world.reads
        world.feed.notice([other.id])
        world.feed.notice([world.job.id])
        assert text([await soon(reader)]) == b"x"
        assert world.reads == before + 1


async def test_without_notices_appends_of_other_processes_are_found_by_polling() -> None:
    async with opened(poll=0.01) as world:
        reader = world.hub.reader(world.job.id, "log")
        await reader.first()
        await world.append(b"x", here=False)
        assert text([await soon(reader)]) == b"x"


async def test_a_slow_reader_gets_everything_in_bounded_portions() -> None:
    async with opened() as world:
        slow = world.hub.reader(world.job.id, "log")
        quick = world.hub.reader(world.job.id, "log")
        await slow.first()
        await quick.first()
        wanted = b""
        for number in range(100):
            data = (b"%08d" % number) * 2048
            wanted += data
            await world.append(data, here=True)
            assert text([await soon(quick)]) == data
        world.feed.announce(await world.end())
        portions = await read_all(slow)
        assert text(portions) == wanted
        assert max(len(text([one])) for one in portions) <= PORTION_BYTES


async def test_many_readers_of_old_items_share_their_reads() -> None:
    async with opened() as world:
        for number in range(40):
            await world.append((b"%04d" % number) * 4096, here=True)
        readers = [world.hub.reader(world.job.id, "log") for _ in range(50)]
        first = [await reader.first() for reader in readers]
        assert len({id(portion.chunks[0].data) for portion in first}) == 1
        before = world.reads
        async with anyio.create_task_group() as tasks:
            for reader in readers:
                tasks.start_soon(soon, reader)
        assert world.reads == before + 1


async def test_a_read_that_comes_after_another_reader_had_the_same_part_changes_nothing() -> None:
    store = Gated()
    async with opened(kept=store) as world:
        wanted = b"".join((b"%04d" % number) * 4096 for number in range(40))
        for number in range(40):
            await world.append((b"%04d" % number) * 4096, here=True)
        early, late = (world.hub.reader(world.job.id, "log") for _ in range(2))
        await early.first()
        got = [await late.first()]
        before = store.begun
        store.gate = anyio.Semaphore(0)
        assert early.take() is None
        await until(lambda: store.begun == before + 1)
        # The read for `early` is under way, so this one is the next.
        assert late.take() is None
        store.gate.release()
        await until(lambda: store.begun == before + 2)
        shared = late.take()
        assert shared is not None
        got.append(shared)
        assert late.position == got[-1].end == 2 * PORTION_BYTES
        assert late.take() is None
        store.gate.release()
        store.gate.release()
        while late.position < len(wanted):
            got.append(await soon(late))
            store.gate.release()
        assert [one.position for one in got[1:]] == [one.end for one in got[:-1]]
        assert text(got) == wanted


async def test_readers_of_a_distant_store_get_each_byte_once_and_in_order() -> None:
    async with opened(kept=Distant()) as world:
        wanted = b"".join((b"%04d" % number) * 4096 for number in range(60))
        for number in range(60):
            await world.append((b"%04d" % number) * 4096, here=True)
        await world.end()
        wrong: list[int] = []

        async def read(number: int) -> None:
            for _ in range(number * 7):
                await anyio.lowlevel.checkpoint()
            if text(await read_all(world.hub.reader(world.job.id, "log"))) != wanted:
                wrong.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(read, number)
        assert wrong == []


async def test_a_reader_may_begin_inside_a_chunk() -> None:
    async with opened() as world:
        append = Append(
            world.job.id, "items", StreamKind.JSON, 1, 3, b'{"a":[1,2]},"b,]",3', MOST, MOST
        )
        await world.kept.append([append])
        await world.append(b"abcdef", here=True)
        log = await soon(world.hub.reader(world.job.id, "log", 4))
        assert log.chunks == (Chunk(4, 2, 1, b"ef"),)
        items = await soon(world.hub.reader(world.job.id, "items", 1))
        assert items.chunks == (Chunk(1, 2, 1, b'"b,]",3'),)


async def test_a_reader_beyond_the_end_waits_for_the_stream_to_come_there() -> None:
    async with opened() as world:
        await world.append(b"abc", here=True)
        reader = world.hub.reader(world.job.id, "log", 5)
        first = await soon(reader)
        assert (first.chunks, first.end, first.tail) == ((), 5, 3)
        await world.append(b"defg", here=True)
        assert text([await soon(reader)]) == b"fg"


async def test_an_unknown_job_is_an_error_and_leaves_nothing_behind() -> None:
    async with opened() as world:
        with pytest.raises(UnknownJob):
            await world.hub.reader(sample_job().id, "log").first()
        assert world.hub.readers == world.feed.listeners == 0


async def test_a_store_that_is_away_at_the_beginning_is_an_error() -> None:
    async with opened() as world:
        world.store.faults = Faults(before=1)
        with pytest.raises(StoreUnavailable):
            await world.hub.reader(world.job.id, "log").first()
        assert world.hub.readers == 0


async def test_readers_survive_a_store_that_is_away() -> None:
    async with opened(poll=0.01) as world:
        reader = world.hub.reader(world.job.id, "log")
        await reader.first()
        world.store.faults = Faults(before=1)
        await world.append(b"x", here=False)
        world.feed.notice([world.job.id])
        known = world.reads
        await until(lambda: world.reads > known + 2)
        world.store.faults = Faults()
        assert text([await soon(reader)]) == b"x"


async def test_a_stream_that_does_not_exist_may_still_come_while_the_job_runs() -> None:
    async with opened() as world:
        reader = world.hub.reader(world.job.id, "log")
        first = await soon(reader)
        assert (first.kind, first.chunks, first.closed) == (None, (), False)
        await world.append(b"x", here=True)
        found = await soon(reader)
        assert (found.kind, text([found])) == (StreamKind.TEXT, b"x")


async def test_a_stream_that_an_ended_job_does_not_have_is_empty_and_closed() -> None:
    async with opened() as world:
        await world.end()
        portions = await read_all(world.hub.reader(world.job.id, "log"))
        assert [(one.kind, one.chunks, one.closed) for one in portions] == [(None, (), True)]


async def test_items_appended_right_before_the_end_come_before_it() -> None:
    async with opened() as world:
        reader = world.hub.reader(world.job.id, "log")
        await reader.first()
        await world.append(b"last", here=False)
        world.feed.announce(await world.end())
        assert text(await read_all(reader)) == b"last"


@pytest.mark.parametrize("how", ["deleted", "closed"])
async def test_readers_end_with_the_job_or_the_queue(how: str) -> None:
    async with opened() as world:
        reader = world.hub.reader(world.job.id, "log")
        await reader.first()
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                assert await read_all(reader) == []

            tasks.start_soon(read)
            await anyio.lowlevel.checkpoint()
            world.feed.close() if how == "closed" else world.feed.forget(world.job.id)
        if how == "closed":
            assert await read_all(world.hub.reader(world.job.id, "log")) == []
        assert world.hub.readers == 0


async def test_a_reader_that_is_dropped_leaves_the_hub() -> None:
    async with opened() as world:
        reader = world.hub.reader(world.job.id, "log")
        await reader.first()
        del reader
        gc.collect()
        assert world.hub.readers == 0
        other = world.hub.reader(world.job.id, "log")
        await other.first()
        assert world.hub.readers == 1
        await other.aclose()
        assert world.feed.listeners == 0


@given(
    sizes=st.lists(st.integers(1, 60_000), max_size=12),
    here=st.lists(st.booleans(), min_size=12, max_size=12),
    begins=st.lists(st.integers(0, 200_000), min_size=1, max_size=4),
    eager=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_every_reader_gets_each_byte_once_and_in_order(
    sizes: list[int], here: list[bool], begins: list[int], eager: list[bool]
) -> None:
    whole = b"".join(bytes([65 + place]) * size for place, size in enumerate(sizes))
    portions: list[list[Portion]] = [[] for _ in begins]

    async def live() -> None:
        async with opened() as world:
            readers = [world.hub.reader(world.job.id, "log", begin) for begin in begins]
            for reader, seen in zip(readers, portions, strict=True):
                seen.append(await reader.first())
            for place, size in enumerate(sizes):
                await world.append(bytes([65 + place]) * size, here=here[place])
                if eager[place]:
                    world.feed.notice([world.job.id])
                    await anyio.lowlevel.checkpoint()
                    for reader, seen in zip(readers, portions, strict=True):
                        if (portion := reader.take()) is not None:
                            seen.append(portion)
            world.feed.announce(await world.end())
            for reader, seen in zip(readers, portions, strict=True):
                seen.extend(await read_all(reader))

    anyio.run(live)
    for begin, seen in zip(begins, portions, strict=True):
        assert text(seen) == whole[begin:]
        assert [one.position for one in seen[1:]] == [one.end for one in seen[:-1]]
        assert seen[-1].closed


@given(
    st.lists(
        st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4),
        max_size=6,
    )
)
def test_a_chunk_of_json_can_be_cut_at_each_item(values: list[object]) -> None:
    chunk = Chunk(10, len(values), 3, ",".join(map(json.dumps, values)).encode())
    for place in range(len(values) + 1):
        rest = after(StreamKind.JSON, chunk, 10 + place)
        items = list(numbered_items(StreamKind.JSON, [rest])) if rest.units else []
        assert [one.value for one in items] == values[place:]
        assert [one.position for one in items] == [*range(11 + place, 11 + len(values))]

"""The conformance suite of stores that keep the output of jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobId, new_job_id
from asyncjobs.core.output import (
    MAX_STREAMS,
    Append,
    Appended,
    Chunk,
    OutputPart,
    ReadFrom,
    Refusal,
    StreamInfo,
    StreamKind,
)
from asyncjobs.protocols import ChangeNotices, Store, power_of
from asyncjobs.testing.racing import play_both
from asyncjobs.testing.samples import LOOKALIKES, NOW, begun, change_of, failed, sample_job
from asyncjobs.testing.sharing_conformance import TwoOpeners

_EVERYTHING = 10**9
_ALL_BYTES = bytes(range(256))
_RACERS = 12
_ROUNDS = 12

# More bytes, and more appends, than stores send in one statement or script.
_LARGE = 5 * 1024 * 1024
_MANY_IN_ONE_CALL = 600

STALE, FULL, KIND = Refusal.STALE, Refusal.FULL, Refusal.KIND
MOVED, ENDED, GONE = Refusal.MOVED, Refusal.ENDED, Refusal.GONE


def text(job: Job, data: bytes, **fields: Any) -> Append:
    """Make an append to the text stream `log`, without limits, with these fields changed."""
    whole = Append(job.id, "log", StreamKind.TEXT, 1, 1, data, _EVERYTHING, _EVERYTHING)
    return replace(whole, **fields)


def items(job: Job, number: int, data: bytes, **fields: Any) -> Append:
    """Make an append of JSON items to the stream `items`."""
    return text(job, data, stream="items", kind=StreamKind.JSON, items=number, **fields)


async def begun_job(store: Any) -> Job:
    """Insert a job that is processing."""
    job = begun(sample_job())
    await store.insert([job])
    return job


async def read(
    store: Any, job: Job, stream: str = "log", position: int = 0, most: int = _EVERYTHING
) -> OutputPart:
    """Read a stream that exists."""
    [part] = await store.read_output([ReadFrom(job.id, stream, position, most)])
    assert isinstance(part, OutputPart)
    return part


async def contents(store: Any, job: Job, stream: str = "log") -> bytes:
    """Read all bytes of a stream, whose chunks must follow one another without gap or overlap."""
    part = await read(store, job, stream)
    position = 0
    for chunk in part.chunks:
        assert chunk.position == position
        position = chunk.end
    assert part.end == position
    return b"".join(chunk.data for chunk in part.chunks)


def digest(data: bytes) -> str:
    """Return a short text to compare: showing the difference of megabytes takes minutes."""
    return sha256(data).hexdigest()


@pytest.mark.anyio
class OutputStreamsConformance(TwoOpeners):
    """The contract of `asyncjobs.protocols.OutputStreams`.

    Override the fixture `store`, and `opener` if several processes may open the data, as for
    `SharingConformance`. `patience` is how many seconds a rule waits for a notice.
    """

    patience = 60.0

    async def test_appended_items_are_read_in_order(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            done = await store.append([text(job, b"one"), text(job, "zwölf".encode())])
            done = [*done, *await store.append([text(job, b"!", epoch=2)])]
            assert done == [Appended(3), Appended(9), Appended(10)]
            chunks = (
                Chunk(0, 3, 1, b"one"),
                Chunk(3, 6, 1, "zwölf".encode()),
                Chunk(9, 1, 2, b"!"),
            )
            assert await read(store, job) == OutputPart(StreamKind.TEXT, chunks, 10, 2)

    async def test_positions_count_items_or_bytes(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            raw = text(job, b"abcde", stream="raw", kind=StreamKind.BYTES, items=2)
            some = [items(job, 3, b"1,2,3"), raw, items(job, 1, b"[4]"), raw]
            assert list(await store.append(some)) == [
                *(Appended(3), Appended(5)),
                *(Appended(4), Appended(10)),
            ]
            part = await read(store, job, "items")
            assert part.chunks == (Chunk(0, 3, 1, b"1,2,3"), Chunk(3, 1, 1, b"[4]"))
            part = await read(store, job, "raw")
            assert part.chunks == (Chunk(0, 5, 1, b"abcde"), Chunk(5, 5, 1, b"abcde"))

    async def test_a_read_begins_with_the_chunk_of_its_position(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append(
                [items(job, 3, b"1,2,3"), items(job, 2, b"4,5"), items(job, 1, b"6")]
            )
            for position, first in ((0, 0), (2, 0), (3, 3), (4, 3), (5, 5), (6, None), (99, None)):
                part = await read(store, job, "items", position)
                begin = part.chunks[0].position if part.chunks else None
                assert (begin, part.end) == (first, 6), position

    async def test_a_read_returns_whole_chunks_up_to_its_size(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append([text(job, b"x" * 10) for _ in range(50)])
            for most, number in ((0, 1), (1, 1), (10, 1), (19, 1), (20, 2), (333, 33), (500, 50)):
                part = await read(store, job, "log", 0, most)
                assert len(part.chunks) == number, most
                assert part.end == 500

    async def test_reads_are_answered_in_order(self, store: Any) -> None:
        async with store:
            one, two = await begun_job(store), await begun_job(store)
            await store.append([text(one, b"one"), text(two, b"two"), items(two, 1, b"2")])
            asked = [(two, "log"), (one, "items"), (sample_job(), "log"), (two, "items")]
            asked += [(one, "log"), (two, "log")]
            found = await store.read_output([ReadFrom(job.id, name, 0, 9) for job, name in asked])
            data = [part and part.chunks[0].data for part in found]
            assert data == [b"two", None, None, b"2", b"one", b"two"]

    async def test_nothing_asked_is_nothing_answered(self, store: Any) -> None:
        async with store:
            assert list(await store.append([])) == []
            assert list(await store.read_output([])) == []
            assert list(await store.outputs([])) == []

    async def test_streams_are_described_by_name(self, store: Any) -> None:
        async with store:
            one, two = await begun_job(store), await begun_job(store)
            await store.append([text(two, b"ab", items=3), items(two, 2, b"1,2", epoch=2)])
            await store.append([text(one, b"abc", stream="a" * 64, kind=StreamKind.BYTES)])
            await store.append([items(two, 1, b"33", epoch=3)])
            found = await store.outputs([two.id, new_job_id(), one.id])
            assert [list(streams) for streams in found] == [
                [
                    StreamInfo("items", StreamKind.JSON, 3, 5, 3),
                    StreamInfo("log", StreamKind.TEXT, 3, 2, 1),
                ],
                [],
                [StreamInfo("a" * 64, StreamKind.BYTES, 1, 3, 1)],
            ]

    async def test_names_of_streams_are_compared_exactly(self, store: Any) -> None:
        async with store:
            for number in range(0, len(LOOKALIKES), MAX_STREAMS):
                names = LOOKALIKES[number : number + MAX_STREAMS]
                job = await begun_job(store)
                await store.append([text(job, name.encode(), stream=name) for name in names])
                for name in names:
                    assert await contents(store, job, name) == name.encode()
                [found] = await store.outputs([job.id])
                assert [one.name for one in found] == sorted(names)

    async def test_data_comes_back_unchanged(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            for data in (_ALL_BYTES, b"\0", b"\0" * 9, b"'\\\"", b"\xff\xfe", _ALL_BYTES * 300):
                stream = f"{len(data)}"
                await store.append([text(job, data, stream=stream, kind=StreamKind.BYTES)])
                assert digest(await contents(store, job, stream)) == digest(data)

    async def test_large_calls_are_stored_whole(self, store: Any) -> None:
        async with store:
            jobs = [await begun_job(store) for _ in "12"]
            large = [bytes([number]) * (_LARGE // 2 + number) for number in range(5)]
            await store.append([text(jobs[0], data) for data in large])
            assert digest(await contents(store, jobs[0])) == digest(b"".join(large))
            appends = [text(jobs[1], b"%4d" % number) for number in range(_MANY_IN_ONE_CALL)]
            done = await store.append(appends)
            assert [one.end for one in done] == [4 * n + 4 for n in range(_MANY_IN_ONE_CALL)]
            assert await contents(store, jobs[1]) == b"".join(one.data for one in appends)

    async def test_an_append_without_units_makes_the_stream(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            assert list(await store.append([text(job, b"", items=0)])) == [Appended(0)]
            assert await read(store, job) == OutputPart(StreamKind.TEXT, (), 0, 1)
            again = [
                text(job, b"ab"),
                text(job, b"", position=7, epoch=2),
                text(job, b"c", epoch=2),
            ]
            assert list(await store.append(again)) == [Appended(2), Appended(2), Appended(3)]
            assert await contents(store, job) == b"abc"

    async def test_an_unknown_job_gets_no_output(self, store: Any) -> None:
        job = begun(sample_job())
        async with store:
            assert list(await store.append([text(job, b"x")])) == [Appended(refusal=GONE)]
            await store.insert([job])
            assert list(await store.read_output([ReadFrom(job.id, "log", 0, 9)])) == [None]
            assert list(await store.append([text(job, b"y")])) == [Appended(1)]
            assert await contents(store, job) == b"y"

    async def test_only_a_processing_job_gets_output(self, store: Any) -> None:
        waiting = sample_job()
        async with store:
            await store.insert([waiting])
            assert list(await store.append([text(waiting, b"x")])) == [Appended(refusal=ENDED)]
            await store.replace([change_of(waiting, begun(waiting))])
            assert list(await store.append([text(waiting, b"y")])) == [Appended(1)]
            await store.replace([change_of(begun(waiting), failed(waiting))])
            assert list(await store.append([text(waiting, b"z")])) == [Appended(refusal=ENDED)]
            assert await contents(store, waiting) == b"y"
            [[info]] = await store.outputs([waiting.id])
            assert (info.items, info.bytes) == (1, 1)

    async def test_a_stream_keeps_its_kind(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append([text(job, b"x")])
            for kind in (StreamKind.JSON, StreamKind.BYTES):
                [done] = await store.append([text(job, b"y", kind=kind)])
                assert done.refusal is KIND
            assert await contents(store, job) == b"x"

    async def test_an_append_refuses_those_of_lower_epochs(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append([text(job, b"1"), items(job, 1, b"2", epoch=2)])
            for late in (text(job, b"3"), items(job, 1, b"3"), text(job, b"3", stream="new")):
                assert list(await store.append([late])) == [Appended(refusal=STALE)]
            assert list(await store.append([text(job, b"4", epoch=2)])) == [Appended(2)]

    async def test_a_begun_epoch_refuses_lower_ones(self, store: Any) -> None:
        async with store:
            one, two = await begun_job(store), await begun_job(store)
            await store.append([text(one, b"1")])
            for job in (one, two):
                await store.begin_epoch(job.id, 3)
                await store.begin_epoch(job.id, 2)
                late = [text(job, b"x", epoch=2), text(job, b"x", stream="new", epoch=1)]
                assert list(await store.append(late)) == [Appended(refusal=STALE)] * 2
                [done] = await store.append([text(job, b"3", epoch=3)])
                assert done.refusal is None
            assert await contents(store, one) == b"13"
            # The streams say what was appended, not what has begun.
            await store.begin_epoch(one.id, 4)
            assert (await read(store, one)).epoch == 3

    async def test_a_begun_epoch_of_an_unknown_job_changes_nothing(self, store: Any) -> None:
        job = begun(sample_job())
        async with store:
            await store.begin_epoch(job.id, 2)
            await store.insert([job])
            assert list(await store.outputs([job.id])) == [[]]
            assert list(await store.append([text(job, b"x")])) == [Appended(1)]

    async def test_a_begun_epoch_makes_no_stream(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.begin_epoch(job.id, 2)
            assert [list(found) for found in await store.outputs([job.id])] == [[]]
            assert list(await store.read_output([ReadFrom(job.id, "log", 0, 9)])) == [None]

    async def test_items_and_bytes_of_a_job_are_limited(self, store: Any) -> None:
        async with store:
            one, two = await begun_job(store), await begun_job(store)
            limited: dict[str, Any] = {"max_items": 5, "max_bytes": 10}
            await store.append([text(one, b"1234", items=2, **limited)])
            for number, data in ((4, b"1,2,3,4"), (1, b"1234567"), (4, b"1"), (3, b"1234567")):
                [done] = await store.append([items(one, number, data, **limited)])
                assert done.refusal is FULL, data
            # Exactly as many as are allowed.
            assert list(await store.append([items(one, 3, b"[],[],", **limited)])) == [Appended(3)]
            for more in (text(one, b"x", **limited), text(one, b"", **limited)):
                assert list(await store.append([more])) == [Appended(refusal=FULL)]
            # Each append brings its limits, and each job has its own.
            assert list(await store.append([text(two, b"x", **limited)])) == [Appended(1)]
            assert list(await store.append([text(one, b"x")])) == [Appended(5)]

    async def test_the_number_of_streams_is_limited(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            names = [f"s{number}" for number in range(MAX_STREAMS + 1)]
            done = await store.append([text(job, b"x", stream=name) for name in names])
            assert [one.refusal for one in done] == [None] * MAX_STREAMS + [FULL]
            [done] = await store.append([text(job, b"x", stream="s0")])
            assert done == Appended(2)
            [done] = await store.append([text(job, b"x", stream="more")])
            assert done.refusal is FULL

    async def test_after_a_refused_append_later_ones_to_the_stream_are_refused(
        self, store: Any
    ) -> None:
        async with store:
            job, other = await begun_job(store), await begun_job(store)
            done = await store.append(
                [
                    text(job, b"1"),
                    text(job, b"22", max_bytes=2),
                    text(job, b"3"),
                    items(job, 1, b"4"),
                    text(other, b"5"),
                    text(job, b"6", kind=StreamKind.BYTES),
                ]
            )
            assert [one.refusal for one in done] == [None, FULL, FULL, None, None, FULL]
            assert await contents(store, job) == b"1"
            # The next call is free again.
            assert list(await store.append([text(job, b"7")])) == [Appended(2)]

    async def test_an_append_at_another_position_is_refused(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            for position, refusal in ((1, MOVED), (0, None)):
                [done] = await store.append([text(job, b"abc", position=position)])
                assert done.refusal is refusal
            for position in (2, 4, 10**9):
                [done] = await store.append([text(job, b"d", position=position)])
                assert done.refusal is MOVED
            some = [text(job, b"de", position=3), text(job, b"f", position=5)]
            assert list(await store.append(some)) == [Appended(5), Appended(6)]
            assert await contents(store, job) == b"abcdef"
            [done] = await store.append([items(job, 1, b"1", position=3)])
            assert done.refusal is MOVED

    async def test_a_repeated_append_is_stored_once(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            calls = [
                [text(job, b"abc", position=0), items(job, 2, b"1,2", position=0)],
                [text(job, b"de", position=3), text(job, b"f", position=5)],
            ]
            for call in calls:
                first = list(await store.append(call))
                assert list(await store.append(call)) == first
            # Also after later appends, together with a new one, and when the job is full.
            again = [*calls[1], text(job, b"g", position=6)]
            assert [one.end for one in await store.append(again)] == [5, 6, 7]
            full = [replace(one, max_items=1, max_bytes=1) for one in calls[0]]
            assert [one.end for one in await store.append(full)] == [3, 2]
            assert await contents(store, job) == b"abcdefg"
            assert await contents(store, job, "items") == b"1,2"
            [infos] = await store.outputs([job.id])
            assert [(one.items, one.bytes) for one in infos] == [(2, 3), (4, 7)]

    async def test_an_append_that_differs_is_no_repetition(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append([items(job, 1, b"123"), items(job, 1, b"4")])
            for other in (
                items(job, 1, b"124", position=0),
                items(job, 2, b"1,3", position=0),
                items(job, 2, b"123", position=0),
                items(job, 1, b"4", position=0),
                items(job, 1, b"12", position=0),
                items(job, 1, b"123", position=0, epoch=2),
            ):
                [done] = await store.append([other])
                assert done.refusal is MOVED, other
            assert await contents(store, job, "items") == b"1234"

    async def test_of_several_reasons_the_first_one_is_returned(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append([text(job, b"abc", epoch=2)])
            bad = text(job, b"x", kind=StreamKind.JSON, position=1, max_bytes=3)
            steps = (
                (bad, STALE),
                (replace(bad, epoch=2), KIND),
                (replace(bad, epoch=2, kind=StreamKind.TEXT), MOVED),
                (replace(bad, epoch=2, kind=StreamKind.TEXT, position=3), FULL),
            )
            for append, refusal in steps:
                assert list(await store.append([append])) == [Appended(refusal=refusal)]
            await store.replace([change_of(job, _done(job))])
            assert list(await store.append([bad])) == [Appended(refusal=ENDED)]
            await store.delete([job.id])
            assert list(await store.append([bad])) == [Appended(refusal=GONE)]

    async def test_appending_changes_no_job(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append([text(job, b"x")])
            await store.begin_epoch(job.id, 2)
            assert list(await store.get([job.id])) == [job]
            assert list(await store.replace([change_of(job, _done(job))])) == [True]
            assert await contents(store, job) == b"x"

    async def test_a_deleted_job_leaves_no_output(self, store: Any) -> None:
        async with store:
            gone, kept = await begun_job(store), await begun_job(store)
            for job in (gone, kept):
                await store.append([text(job, b"x", epoch=2), items(job, 1, b"1", epoch=2)])
            await store.delete([gone.id])
            reads = [ReadFrom(gone.id, name, 0, 9) for name in ("log", "items")]
            for _ in "12":
                assert list(await store.read_output(reads)) == [None, None]
                assert [list(found) for found in await store.outputs([gone.id])] == [[]]
                # Also if a job of that id is stored again.
                await store.insert([gone])
            # Neither streams nor epoch are left.
            assert list(await store.append([text(gone, b"y", epoch=1)])) == [Appended(1)]
            assert await contents(store, kept) == b"x"

    async def test_closing_and_opening_again_loses_no_output(self, store: Any) -> None:
        async with store:
            job = await begun_job(store)
            await store.append([text(job, b"x")])
            await store.begin_epoch(job.id, 2)
        async with store:
            assert await contents(store, job) == b"x"
            assert list(await store.append([text(job, b"y")])) == [Appended(refusal=STALE)]
            assert list(await store.append([text(job, b"y", epoch=2)])) == [Appended(2)]

    async def test_racing_appends_leave_no_gap(self, store: Any) -> None:
        done: list[Appended] = []

        async def append(number: int) -> None:
            done.extend(await store.append([text(job, b"%02d" % number), text(job, b",")]))

        async with store:
            job = await begun_job(store)
            async with anyio.create_task_group() as tasks:
                for number in range(_RACERS):
                    tasks.start_soon(append, number)
            assert len({one.end for one in done}) == 2 * _RACERS
            found = (await contents(store, job)).replace(b",", b" ").split()
            assert sorted(map(int, found)) == [*range(_RACERS)]

    async def test_one_opener_reads_what_the_other_has_appended(
        self, store: Any, other: Any
    ) -> None:
        async with store, other:
            job = await begun_job(store)
            for number in range(_ROUNDS):
                one, two = (store, other) if number % 2 else (other, store)
                assert list(await one.append([text(job, b"x")])) == [Appended(number + 1)]
                assert await contents(two, job) == b"x" * (number + 1)

    async def test_two_openers_append_to_one_stream_without_gap(
        self, store: Any, other: Any
    ) -> None:
        async def append(opened: Any) -> list[int]:
            ends: list[int] = []
            for _ in range(_ROUNDS):
                ends += [one.end for one in await opened.append([text(job, b"ab")])]
            return ends

        async with store, other:
            job = await begun_job(store)
            mine, theirs = await play_both(append, store, append, other)
            ends = [2 * number + 2 for number in range(2 * _ROUNDS)]
            assert sorted(mine + theirs) == ends
            assert (mine, theirs) == (sorted(mine), sorted(theirs))
            assert await contents(other, job) == b"ab" * len(ends)

    async def test_a_reader_that_sees_the_end_of_a_job_sees_all_its_output(
        self, store: Any, other: Any
    ) -> None:
        async def end_and_read(opened: Any, job: Job, turns: int) -> tuple[int, int]:
            await _turns(turns)
            assert list(await opened.replace([change_of(job, _done(job))])) == [True]
            end = await _end(opened, job)
            await _turns(_ROUNDS)
            return end, await _end(opened, job)

        async with store, other:
            for turns in range(_ROUNDS):
                job = await begun_job(store)
                part = partial(end_and_read, job=job, turns=turns)
                appended, ends = await play_both(_appending(job, until=ENDED), store, part, other)
                assert ends == (appended, appended)

    async def test_an_epoch_begun_by_one_opener_stops_the_other(
        self, store: Any, other: Any
    ) -> None:
        async def take_over(opened: Any, job: Job, turns: int) -> int:
            await _turns(turns)
            await opened.begin_epoch(job.id, 2)
            end = await _end(opened, job)
            # The end is known, since the former attempt appends nothing any more.
            [done] = await opened.append([text(job, b"new", epoch=2, position=end)])
            assert done == Appended(end + 3)
            return end

        async with store, other:
            for turns in range(_ROUNDS):
                job = await begun_job(store)
                part = partial(take_over, job=job, turns=turns)
                appended, end = await play_both(_appending(job, until=STALE), store, part, other)
                assert end == appended

    async def test_appends_to_a_job_that_is_deleted_leave_nothing(
        self, store: Any, other: Any
    ) -> None:
        async def delete(opened: Any, job: Job, turns: int) -> None:
            await _turns(turns)
            assert list(await opened.delete([job.id])) == [True]

        async with store, other:
            for turns in range(_ROUNDS):
                job = await begun_job(store)
                part = partial(delete, job=job, turns=turns)
                await play_both(_appending(job, until=GONE), store, part, other)
                await other.insert([job])
                assert [list(found) for found in await other.outputs([job.id])] == [[]]

    async def test_an_append_is_noticed_by_other_openers(self, store: Any, other: Any) -> None:
        noticing = power_of(other, ChangeNotices)
        if noticing is None:
            pytest.skip("The store has no notices.")
        async with store, other:
            job = await begun_job(other)
            changes: Any = noticing.changes()
            with anyio.fail_after(self.patience):
                await anext(changes)
                await store.append([text(job, b"x")])
                await _noticed(changes, job.id)
            await changes.aclose()


def _done(job: Job) -> Job:
    return lifecycle.complete(job, NOW, token="t", result=b"1")


def _appending(job: Job, *, until: Refusal) -> Callable[[Store], Awaitable[int]]:
    """Return a part that appends until it is refused, and returns the end of what is stored."""

    async def append(opened: Any) -> int:
        end = 0
        while True:
            [done] = await opened.append([text(job, b"ab")])
            if done.refusal is not None:
                assert done.refusal is until
                return end
            end = done.end

    return append


async def _end(opened: Any, job: Job) -> int:
    [part] = await opened.read_output([ReadFrom(job.id, "log", 0, _EVERYTHING)])
    if part is None:
        return 0
    assert part.end == sum(chunk.units for chunk in part.chunks)
    return int(part.end)


async def _turns(number: int) -> None:
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


async def _noticed(changes: Any, job_id: JobId) -> None:
    batch: Sequence[JobId] = [new_job_id()]
    while batch and job_id not in batch:
        batch = await anext(changes)

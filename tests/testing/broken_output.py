"""Stores that break a rule of output streams, with the rule that each of them breaks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from types import TracebackType

import anyio.lowlevel

from asyncjobs.core.job import JobId, JobStatus
from asyncjobs.core.output import (
    MAX_STREAMS,
    Append,
    Appended,
    OutputPart,
    ReadFrom,
    Refusal,
    StreamInfo,
    StreamKind,
)
from asyncjobs.stores.memory import MemoryStore

# reads


class ReadsNewestFirst(MemoryStore):
    def _read_output(self, read: ReadFrom) -> OutputPart | None:
        part = super()._read_output(read)
        return part and replace(part, chunks=part.chunks[::-1])


class ReadsAfterThePosition(MemoryStore):
    """Leaves out a chunk that begins before the position."""

    def _read_output(self, read: ReadFrom) -> OutputPart | None:
        part = super()._read_output(read)
        return part and replace(
            part, chunks=tuple(one for one in part.chunks if one.position >= read.position)
        )


class ReadsEverything(MemoryStore):
    def _read_output(self, read: ReadFrom) -> OutputPart | None:
        return super()._read_output(replace(read, max_bytes=10**9))


class AnswersInItsOwnOrder(MemoryStore):
    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        return await super().read_output(sorted(reads, key=lambda one: one.job_id + one.stream))


class RefusesEmptyCalls(MemoryStore):
    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        if not reads:
            raise ValueError("syntax error at or near )")
        return await super().read_output(reads)


class DescribesTheLatestFirst(MemoryStore):
    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        return [found[::-1] for found in await super().outputs(ids)]


# what is stored


class CountsItemsOfEveryKind(MemoryStore):
    def _append(self, one: Append) -> Appended:
        return super()._append(replace(one, kind=StreamKind.JSON))


class IgnoresTheCaseOfNames(MemoryStore):
    def _append(self, one: Append) -> Appended:
        return super()._append(replace(one, stream=one.stream.casefold()))

    def _read_output(self, read: ReadFrom) -> OutputPart | None:
        return super()._read_output(replace(read, stream=read.stream.casefold()))


class StoresText(MemoryStore):
    """Keeps the data of every stream as text."""

    def _append(self, one: Append) -> Appended:
        return super()._append(replace(one, data=one.data.decode(errors="replace").encode()))


class CutsChunks(MemoryStore):
    def _append(self, one: Append) -> Appended:
        return super()._append(replace(one, data=one.data[: 1 << 20]))


class SkipsEmptyAppends(MemoryStore):
    def _append(self, one: Append) -> Appended:
        return super()._append(one) if one.data else Appended(0)


class CountsAppends(MemoryStore):
    """Writes a new revision of the job with each append."""

    def _append(self, one: Append) -> Appended:
        answer = super()._append(one)
        if answer.refusal is None:
            job = self._jobs[one.job_id]
            self._put(job.changed(revision=job.revision + 1))
        return answer


class KeepsOutputOfTheDead(MemoryStore):
    def _delete(self, job_id: JobId) -> bool:
        output = self._outputs.get(job_id)
        deleted = super()._delete(job_id)
        if output is not None:
            self._outputs[job_id] = output
        return deleted


class ForgetsOutputWhenClosed(MemoryStore):
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._outputs.clear()


# what is refused


class _Lenient(MemoryStore):
    """Appends to jobs as if they were processing."""

    def forced(self, one: Append) -> Appended:
        job = self._jobs.get(one.job_id)
        if job is None:
            return Appended(refusal=Refusal.GONE)
        self._jobs[job.id] = job.changed(status=JobStatus.PROCESSING)
        answer = super()._append(one)
        self._jobs[job.id] = job
        return answer


class KeepsOutputForUnknownJobs(MemoryStore):
    """Stores the output of a job that may come later."""

    def __init__(self) -> None:
        super().__init__()
        self.early: list[Append] = []

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        self.early += [one for one in appends if one.job_id not in self._jobs]
        return await super().append(appends)

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        for one in self.early:
            self._append(one)
        return await super().read_output(reads)


class IgnoresStatuses(_Lenient):
    def _append(self, one: Append) -> Appended:
        return self.forced(one)


class IgnoresKinds(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[tuple[JobId, str], StreamKind] = {}

    def _append(self, one: Append) -> Appended:
        kind = self.kinds.setdefault((one.job_id, one.stream), one.kind)
        return super()._append(replace(one, kind=kind))


class HasAnEpochPerStream(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[tuple[JobId, str], int] = {}

    def _append(self, one: Append) -> Appended:
        if (output := self._outputs.get(one.job_id)) is not None:
            output.epoch = self.epochs.get((one.job_id, one.stream), 0)
        answer = super()._append(one)
        if answer.refusal is None:
            self.epochs[one.job_id, one.stream] = one.epoch
        return answer


class BeginsNoEpoch(MemoryStore):
    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        """Leave it to the first append."""


class BeginsEpochsOfUnknownJobs(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.begun: dict[JobId, int] = {}

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        await super().begin_epoch(job_id, epoch)
        self.begun[job_id] = epoch

    def _append(self, one: Append) -> Appended:
        stale = one.epoch < self.begun.get(one.job_id, 0)
        return Appended(refusal=Refusal.STALE) if stale else super()._append(one)


class BeginsEpochsByAppending(MemoryStore):
    """Marks the epoch in the default stream."""

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        await super().append([Append(job_id, "log", StreamKind.TEXT, epoch, 0, b"", 99, 99)])


class LimitsEachStream(MemoryStore):
    def _append(self, one: Append) -> Appended:
        infos = self._outputs[one.job_id].infos() if one.job_id in self._outputs else []
        others = [info for info in infos if info.name != one.stream]
        return super()._append(
            replace(
                one,
                max_items=one.max_items + sum(info.items for info in others),
                max_bytes=one.max_bytes + sum(info.bytes for info in others),
            )
        )


class HasAnyNumberOfStreams(MemoryStore):
    def _append(self, one: Append) -> Appended:
        answer = super()._append(one)
        infos = self._outputs[one.job_id].infos() if one.job_id in self._outputs else []
        many = answer.refusal is Refusal.FULL and len(infos) == MAX_STREAMS
        return Appended(one.units) if many else answer


class GoesOnAfterARefusal(MemoryStore):
    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        await anyio.lowlevel.checkpoint()
        return [self._append(one) for one in appends]


class IgnoresPositions(MemoryStore):
    def _append(self, one: Append) -> Appended:
        return super()._append(replace(one, position=None))


class KnowsNoRepetition(MemoryStore):
    def _append(self, one: Append) -> Appended:
        part = self._read_output(ReadFrom(one.job_id, one.stream, 0, 1))
        end = 0 if part is None else part.end
        if one.position not in (None, end):
            return Appended(refusal=Refusal.MOVED)
        return super()._append(one)


class ComparesPositionsOnly(MemoryStore):
    def _append(self, one: Append) -> Appended:
        answer = super()._append(one)
        part = self._read_output(ReadFrom(one.job_id, one.stream, 0, 10**9))
        for chunk in part.chunks if part and answer.refusal is Refusal.MOVED else ():
            if chunk.position == one.position:
                return Appended(chunk.end)
        return answer


class ChecksLimitsFirst(MemoryStore):
    def _append(self, one: Append) -> Appended:
        infos = self._outputs[one.job_id].infos() if one.job_id in self._outputs else []
        full = sum(info.bytes for info in infos) + len(one.data) > one.max_bytes
        return Appended(refusal=Refusal.FULL) if full else super()._append(one)


# races


class ReadsThenAppends(MemoryStore):
    """Finds the end of a stream in one step, and appends there in another."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        before = deepcopy(self._outputs)
        await anyio.lowlevel.checkpoint()
        for one in appends:
            self._outputs.pop(one.job_id, None)
        self._outputs.update(before)
        return [self._append(one) for one in appends]


class KeepsStreamsPerOpener(MemoryStore):
    """Writes output to a cache of its own."""

    def opened_again(self) -> KeepsStreamsPerOpener:
        other = type(self)()
        other._jobs = self._jobs  # noqa: SLF001  # of the same class
        return other


class ChecksTheStatusFirst(_Lenient):
    """Looks at the job in one step, and appends in another."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        found = [self._jobs.get(one.job_id) for one in appends]
        for _ in "123":
            await anyio.lowlevel.checkpoint()
        return [
            self.forced(one) if job and job.status is JobStatus.PROCESSING else self._append(one)
            for one, job in zip(appends, found, strict=True)
        ]


class LooksForTheJobFirst(MemoryStore):
    """Looks for the job in one step, and appends in another, also if it was deleted meanwhile."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        found = [self._jobs.get(one.job_id) for one in appends]
        await anyio.lowlevel.checkpoint()
        answers: list[Appended] = []
        for one, job in zip(appends, found, strict=True):
            if job is None or job.id in self._jobs:
                answers.append(self._append(one))
            else:
                self._jobs[job.id] = job
                answers.append(self._append(one))
                del self._jobs[job.id]
        return answers


class ChecksTheEpochFirst(MemoryStore):
    """Looks at the epoch in one step, and appends in another."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        outputs = [self._outputs.get(one.job_id) for one in appends]
        known = [output.epoch if output else 0 for output in outputs]
        await anyio.lowlevel.checkpoint()
        return [
            self._append(one if one.epoch < epoch else replace(one, epoch=one.epoch + 9))
            for one, epoch in zip(appends, known, strict=True)
        ]


BROKEN_AT_OUTPUT: list[tuple[type[MemoryStore], str]] = [
    (ReadsNewestFirst, "test_appended_items_are_read_in_order"),
    (CountsItemsOfEveryKind, "test_positions_count_items_or_bytes"),
    (ReadsAfterThePosition, "test_a_read_begins_with_the_chunk_of_its_position"),
    (ReadsEverything, "test_a_read_returns_whole_chunks_up_to_its_size"),
    (AnswersInItsOwnOrder, "test_reads_are_answered_in_order"),
    (RefusesEmptyCalls, "test_nothing_asked_is_nothing_answered"),
    (DescribesTheLatestFirst, "test_streams_are_described_by_name"),
    (IgnoresTheCaseOfNames, "test_names_of_streams_are_compared_exactly"),
    (StoresText, "test_data_comes_back_unchanged"),
    (CutsChunks, "test_large_calls_are_stored_whole"),
    (SkipsEmptyAppends, "test_an_append_without_units_makes_the_stream"),
    (KeepsOutputForUnknownJobs, "test_an_unknown_job_gets_no_output"),
    (IgnoresStatuses, "test_only_a_processing_job_gets_output"),
    (IgnoresKinds, "test_a_stream_keeps_its_kind"),
    (HasAnEpochPerStream, "test_an_append_refuses_those_of_lower_epochs"),
    (BeginsNoEpoch, "test_a_begun_epoch_refuses_lower_ones"),
    (BeginsEpochsOfUnknownJobs, "test_a_begun_epoch_of_an_unknown_job_changes_nothing"),
    (BeginsEpochsByAppending, "test_a_begun_epoch_makes_no_stream"),
    (LimitsEachStream, "test_items_and_bytes_of_a_job_are_limited"),
    (HasAnyNumberOfStreams, "test_the_number_of_streams_is_limited"),
    (
        GoesOnAfterARefusal,
        "test_after_a_refused_append_later_ones_to_the_stream_are_refused",
    ),
    (IgnoresPositions, "test_an_append_at_another_position_is_refused"),
    (KnowsNoRepetition, "test_a_repeated_append_is_stored_once"),
    (ComparesPositionsOnly, "test_an_append_that_differs_is_no_repetition"),
    (ChecksLimitsFirst, "test_of_several_reasons_the_first_one_is_returned"),
    (CountsAppends, "test_appending_changes_no_job"),
    (KeepsOutputOfTheDead, "test_a_deleted_job_leaves_no_output"),
    (ForgetsOutputWhenClosed, "test_closing_and_opening_again_loses_no_output"),
    (ReadsThenAppends, "test_racing_appends_leave_no_gap"),
    (KeepsStreamsPerOpener, "test_one_opener_reads_what_the_other_has_appended"),
    (ReadsThenAppends, "test_two_openers_append_to_one_stream_without_gap"),
    (ChecksTheStatusFirst, "test_a_reader_that_sees_the_end_of_a_job_sees_all_its_output"),
    (ChecksTheEpochFirst, "test_an_epoch_begun_by_one_opener_stops_the_other"),
    (LooksForTheJobFirst, "test_appends_to_a_job_that_is_deleted_leave_nothing"),
]

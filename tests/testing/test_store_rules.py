"""The suite for stores detects loose comparisons, truncated calls and blocked lanes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from functools import partial

import pytest

from asyncjobs.core.encoding import Columns, decode, encode_state, encode_submission
from asyncjobs.core.job import ATTEMPT_ERRORS, Job, JobError, JobId
from asyncjobs.errors import UnreadableJob
from asyncjobs.protocols import Change, Listing, StoreClock
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import (
    InlineReadsConformance,
    ListingConformance,
    OutputStreamsConformance,
    TalliesConformance,
)
from asyncjobs.testing.samples import NOW
from tests.testing.suites import StoreRules, keeps, named, rules_of

EXACTLY = "test_owners_types_and_keys_are_compared_exactly"
JOINED = "test_owner_type_and_key_are_not_one_text"

Scope = Callable[[Job], Hashable]


class ComparesKeysBy(MemoryStore):
    """Finds the job of a key by a function of owner, type and key."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    def _insert(self, job: Job) -> Job:
        for stored in self._jobs.values():
            keyed = stored.idempotency_key is not None and job.idempotency_key is not None
            if keyed and self._scope(stored) == self._scope(job):
                return stored
        return super()._insert(job)


def squashed(text: str | None) -> str | None:
    return text and text.encode("ascii", "ignore").decode()


def caseless(text: str | None) -> str | None:
    return text and text.casefold()


def trimmed(text: str | None) -> str | None:
    return text and text.strip()


def up_to_nul(text: str | None) -> str | None:
    return text and text.partition("\0")[0]


def by(change: Callable[[str | None], str | None], *fields: str) -> Scope:
    """Compare by three fields; the named ones are normalised first."""
    names = ("user_id", "type", "idempotency_key")

    def scope(job: Job) -> Hashable:
        values = ((name, getattr(job, name)) for name in names)
        return tuple(change(value) if name in fields else value for name, value in values)

    return scope


def joined(separator: str) -> Scope:
    return lambda job: separator.join(map(str, (job.user_id, job.type, job.idempotency_key)))


CHANGES = (squashed, caseless, trimmed, up_to_nul)


@pytest.mark.parametrize("field", ["user_id", "type", "idempotency_key"])
@pytest.mark.parametrize("change", CHANGES, ids=named)
def test_a_store_that_compares_names_loosely_fails(
    change: Callable[[str | None], str | None], field: str
) -> None:
    store = partial(ComparesKeysBy, by(change, field))
    assert not keeps(StoreRules, EXACTLY, lambda: {"store": store()})


@pytest.mark.parametrize("separator", [":", "/", "|", "::", "-", " ", "\0", "\x1f", "\n"])
def test_a_store_that_joins_names_to_one_text_fails(separator: str) -> None:
    store = partial(ComparesKeysBy, joined(separator))
    assert not keeps(StoreRules, JOINED, lambda: {"store": store()})


class TakesFromLanesOfAnyCase(MemoryStore):
    """Takes from `Export` for `export`."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        wanted = {caseless(lane) for lane in lanes}
        alike = [lane for lane in self._due if caseless(lane) in wanted]
        return await super().take(alike, now=now, until=until, limit=limit)


class WritesErrorsInLatin1(MemoryStore):
    """Drops letters of an error message that Western European encodings lack."""

    def _put(self, job: Job) -> None:
        if job.error is not None:
            message = job.error.message.encode("latin-1", "replace").decode("latin-1")
            job = job.changed(error=JobError(code=job.error.code, message=message))
        super()._put(job)


class WritesTracebacksInLatin1(MemoryStore):
    """Does the same to errors of attempts."""

    def _put(self, job: Job) -> None:
        if job.errors_json is not None:
            text = job.errors_json.decode().encode("latin-1", "replace").decode("latin-1")
            job = job.changed(
                errors_json=ATTEMPT_ERRORS.dump_json(ATTEMPT_ERRORS.validate_json(text))
            )
        super()._put(job)


MOST = 512


class InsertsUpToALimit(MemoryStore):
    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        return [*await super().insert(jobs[:MOST]), *jobs[MOST:]]


class ReadsUpToALimit(MemoryStore):
    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return [*await super().get(ids[:MOST]), *(None for _ in ids[MOST:])]


class ReplacesUpToALimit(MemoryStore):
    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return [*await super().replace(changes[:MOST]), *(False for _ in changes[MOST:])]


class TakesUpToALimit(MemoryStore):
    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await super().take(lanes, now=now, until=until, limit=min(limit, MOST))


class DeletesUpToALimit(MemoryStore):
    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return [*await super().delete(ids[:MOST]), *(True for _ in ids[MOST:])]


class TakesWithoutLimitAtZero(MemoryStore):
    """Takes all for a limit of 0, as the LIMIT of some servers does."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await super().take(lanes, now=now, until=until, limit=limit or 10**6)


def read(job: Job) -> Job:
    """Encode a job and decode it, as stores of text do; raise `UnreadableJob` on failure."""
    due_at = None if job.due_at is None else 0
    columns = Columns(job.payload_json, None, None, job.revision, job.lane, due_at)
    decode(job.id, encode_submission(job), encode_state(job), columns)
    return job


def is_readable(job: Job) -> bool:
    try:
        read(job)
    except UnreadableJob:
        return False
    return True


class StopsAtAnUnreadableJob(MemoryStore):
    """Reads before it moves, and so finds the same job again and again."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        due = await super().take(lanes, now=now, until=now, limit=limit)
        for job in due:
            read(job)
        return await super().take(lanes, now=now, until=until, limit=limit)


class LeavesAnUnreadableJobInFront(MemoryStore):
    """Skips unreadable jobs and leaves them due."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken = await super().take(lanes, now=now, until=until, limit=limit)
        for job in taken:
            if not is_readable(job):
                self._put(job.changed(due_at=now))
        return [job for job in taken if is_readable(job)]


class CannotDeleteAnUnreadableJob(MemoryStore):
    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        for job in await self.get(ids):
            if job is not None:
                read(job)
        return await super().delete(ids)


class NamesAnotherJobAsUnreadable(MemoryStore):
    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        found = await super().get(ids)
        if all(job is None or is_readable(job) for job in found):
            return found
        raise UnreadableJob("job_unknown")


class TellsTheTime(MemoryStore):
    """Declares a clock, for which no suite is inherited."""

    powers = MemoryStore.powers | {StoreClock}

    async def now(self) -> datetime:
        return NOW


HUNDREDS = "test_a_call_may_have_hundreds_of_items"
UNREADABLE = "test_an_unreadable_job_harms_no_other"

BROKEN: list[tuple[type[MemoryStore], str]] = [
    (TakesFromLanesOfAnyCase, "test_lanes_are_compared_exactly"),
    (WritesErrorsInLatin1, "test_a_job_comes_back_as_it_went_in"),
    (WritesTracebacksInLatin1, "test_errors_of_attempts_come_back_as_they_were_written"),
    (InsertsUpToALimit, HUNDREDS),
    (ReadsUpToALimit, HUNDREDS),
    (ReplacesUpToALimit, HUNDREDS),
    (TakesUpToALimit, HUNDREDS),
    (DeletesUpToALimit, HUNDREDS),
    (TakesWithoutLimitAtZero, "test_a_limit_of_zero_takes_nothing"),
    (StopsAtAnUnreadableJob, UNREADABLE),
    (LeavesAnUnreadableJobInFront, UNREADABLE),
    (CannotDeleteAnUnreadableJob, UNREADABLE),
    (NamesAnotherJobAsUnreadable, UNREADABLE),
    (TellsTheTime, "test_each_declared_power_has_its_suite"),
]


@pytest.mark.parametrize(("store", "rule"), BROKEN, ids=named)
def test_a_broken_store_fails_the_rule_it_breaks(store: type[MemoryStore], rule: str) -> None:
    assert not keeps(StoreRules, rule, lambda: {"store": store()})


@pytest.mark.parametrize("rule", rules_of(StoreRules, "store"))
def test_a_correct_store_fails_no_rule(rule: str) -> None:
    assert keeps(StoreRules, rule, lambda: {"store": MemoryStore()})


def test_each_declared_power_needs_an_inherited_suite() -> None:
    class Inherited(
        StoreRules,
        ListingConformance,
        InlineReadsConformance,
        OutputStreamsConformance,
        TalliesConformance,
    ):
        tested_elsewhere = frozenset()

    class OnlyOne(StoreRules, ListingConformance):
        tested_elsewhere = frozenset({Listing})

    rule = "test_each_declared_power_has_its_suite"
    assert keeps(Inherited, rule, lambda: {"store": MemoryStore()})
    assert not keeps(OnlyOne, rule, lambda: {"store": MemoryStore()})

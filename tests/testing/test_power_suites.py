"""The suite of each power detects stores that break its contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncjobs.core.job import Job, JobId
from asyncjobs.core.output import Append, Appended
from asyncjobs.errors import ConfigurationError, NotOpen, UnreadableJob, UnusableConnection
from asyncjobs.protocols import (
    Change,
    ChangeNotices,
    Finding,
    Inspection,
    MigrationScript,
    Page,
    Selection,
    Transactions,
)
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import (
    ChangeNoticesConformance,
    InlineReadsConformance,
    InspectionConformance,
    ListingConformance,
    MigrationScriptConformance,
    OutputStreamsConformance,
    TalliesConformance,
    TransactionsConformance,
)
from tests.stores.test_conformance import BROKEN_AT_LISTING as BROKEN_BEFORE
from tests.testing.broken_labels import BROKEN_AT_LABELS, BROKEN_AT_TALLIES
from tests.testing.broken_output import BROKEN_AT_OUTPUT
from tests.testing.suites import Fixtures, keeps, named, rules_of
from tests.testing.test_store_rules import is_readable

# lists


class ListsOwnersOfAnyCase(MemoryStore):
    """Shows Ann the jobs of ann."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(replace(which, user_id=None), limit=10**6, after=after)
        wanted = which.user_id and which.user_id.casefold()
        jobs = [job for job in page.jobs if wanted in (None, (job.user_id or "").casefold())]
        return Page(jobs[:limit])


class ListsTypesByPattern(MemoryStore):
    """Shows jobs of all types that match, as LIKE does."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(replace(which, type=None), limit=10**6, after=after)
        jobs = [job for job in page.jobs if fnmatchcase(job.type, which.type or "*")]
        return Page(jobs[:limit])


class NumbersByTheLastJob(MemoryStore):
    """Reuses the number of a deleted job for the next one."""

    def _insert(self, job: Job) -> Job:
        self._counter = iter([max(self._order.values(), default=0) + 1])  # type: ignore[assignment]
        return super()._insert(job)


class DeclaresAFilterThatDoesNotExist(MemoryStore):
    filters = MemoryStore.filters | {"colour"}


class DeclaresTooFewFilters(MemoryStore):
    filters = frozenset({"type", "status"})


class StopsListingAtAnUnreadableJob(MemoryStore):
    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        page = await super().list(which, limit=limit, after=after)
        for job in page.jobs:
            if not is_readable(job.changed(payload_json=b"1")):
                raise UnreadableJob(job.id)
        return page


BROKEN_AT_LISTING: list[tuple[type[MemoryStore], str]] = [
    (ListsOwnersOfAnyCase, "test_owners_and_types_of_a_selection_are_compared_exactly"),
    (ListsTypesByPattern, "test_owners_and_types_of_a_selection_are_compared_exactly"),
    (NumbersByTheLastJob, "test_a_new_job_never_gets_the_place_of_a_deleted_one"),
    (DeclaresAFilterThatDoesNotExist, "test_the_declared_filters_are_fields_of_a_selection"),
    (DeclaresTooFewFilters, "test_the_declared_filters_are_fields_of_a_selection"),
    (StopsListingAtAnUnreadableJob, "test_a_list_leaves_out_what_cannot_be_read"),
]

# reads


class ReadsElsewhere(MemoryStore):
    """Declares immediate reads, and waits."""

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        await anyio.sleep(0.05)
        return await super().get(ids)


# inspection


class Inspects(MemoryStore):
    powers = MemoryStore.powers | {Inspection}

    async def inspect(self) -> Sequence[Finding]:
        return [Finding("jobs", str(len(self._jobs))), Finding("version", "1")]


class FindsNothing(Inspects):
    async def inspect(self) -> Sequence[Finding]:
        return []


class NamesASubjectTwice(Inspects):
    async def inspect(self) -> Sequence[Finding]:
        return [Finding("version", "1"), Finding("version", "2")]


class InspectsByTaking(Inspects):
    async def inspect(self) -> Sequence[Finding]:
        for job in [*self._jobs.values()]:
            self._put(job.changed(due_at=None))
        return await super().inspect()


# scripts


class HasAScript(MemoryStore):
    powers = MemoryStore.powers | {MigrationScript}

    def migration_sql(self, *, since: int = 0) -> str:
        if since > 1:
            raise ConfigurationError(f"There is no version {since}.")
        return "" if since else "CREATE TABLE jobs ()"


class MakesAScriptOnlyWhileOpen(HasAScript):
    is_open = False

    async def __aenter__(self) -> Any:
        self.is_open = True
        return await super().__aenter__()

    def migration_sql(self, *, since: int = 0) -> str:
        if not self.is_open:
            raise NotOpen("The store")
        return super().migration_sql(since=since)


class KnowsEveryVersion(HasAScript):
    def migration_sql(self, *, since: int = 0) -> str:
        return super().migration_sql(since=min(since, 1))


# notices


class Notifies(MemoryStore):
    """Yields the ids of each call to every listener."""

    powers = MemoryStore.powers | {ChangeNotices}
    most = 10**6

    def __init__(self) -> None:
        super().__init__()
        self.followers: list[Callable[[Sequence[JobId]], None]] = []

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        self.publish([job.id for job in jobs])
        return await super().insert(jobs)

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        self.publish([change.job.id for change in changes])
        return await super().replace(changes)

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        self.publish(ids)
        return await super().delete(ids)

    def publish(self, ids: Sequence[JobId]) -> None:
        for follow in self.followers:
            follow(ids[: self.most])

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        send, receive = anyio.create_memory_object_stream[Sequence[JobId]](100)
        with send, receive:
            self.followers.append(send.send_nowait)
            try:
                yield ()
                async for ids in receive:
                    yield ids
            finally:
                self.followers.remove(send.send_nowait)


class NoticesAppends(Notifies):
    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        self.publish([one.job_id for one in appends])
        return await super().append(appends)


class NoticesNoDeletion(Notifies):
    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return await MemoryStore.delete(self, ids)


class NoticesFirstOfAll(Notifies):
    """Yields nothing until the first write."""

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        changes = super().changes()
        await anext(changes)
        async for ids in changes:
            yield ids


class NoticesUpToALimit(Notifies):
    most = 512


class NotifiesOneFollower(Notifies):
    """Only ever yields to its first listener."""

    followed = False

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        yield ()
        if self.followed:
            await anyio.sleep_forever()
        self.followed = True
        changes = super().changes()
        await anext(changes)
        async for ids in changes:
            yield ids


class Notices(ChangeNoticesConformance):
    patience = 0.2


class Output(OutputStreamsConformance):
    patience = 0.2


# transactions


class Transaction:
    """A transaction of an application; it is its own connection."""

    def __init__(self, store: TakesPartInTransactions) -> None:
        self.store = store
        self.jobs: list[Job] = []
        self.ended = anyio.Event()

    @property
    def connection(self) -> object:
        return self

    async def commit(self) -> None:
        self.store.added(self.jobs)
        await self.rollback()

    async def rollback(self) -> None:
        self.jobs = []
        self.ended.set()


class TakesPartInTransactions(MemoryStore):
    """Adds the jobs of a transaction when it commits."""

    powers = MemoryStore.powers | {Transactions}
    transaction = Transaction

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[Transaction] = []

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[Transaction]:
        transaction = self.transaction(self)
        self.under_way.append(transaction)
        try:
            yield transaction
        finally:
            await transaction.rollback()
            self.under_way.remove(transaction)

    def added(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._insert(job)

    async def insert_within(self, connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        await anyio.lowlevel.checkpoint()
        transaction = self.transaction_of(connection)
        return [await self.insert_one(transaction, job) for job in jobs]

    def transaction_of(self, connection: object) -> Transaction:
        if not isinstance(connection, Transaction):
            raise UnusableConnection("it is of a kind that the store does not know")
        return connection

    async def insert_one(self, transaction: Transaction, job: Job) -> Job:
        await self.wait_for_others(transaction, job)
        if found := self.find(job, [*transaction.jobs, *self._jobs.values()]):
            return found
        transaction.jobs.append(job)
        return job

    async def wait_for_others(self, transaction: Transaction, job: Job) -> None:
        for other in [*self.under_way]:
            if other is not transaction and self.find(job, other.jobs):
                await other.ended.wait()

    def find(self, job: Job, jobs: Sequence[Job]) -> Job | None:
        key = job.user_id, job.type, job.idempotency_key
        for one in jobs:
            same = (one.user_id, one.type, one.idempotency_key) == key
            if one.id == job.id or (job.idempotency_key is not None and same):
                return one
        return None


class InsertsAtOnce(TakesPartInTransactions):
    """Inserts on a separate connection."""

    async def insert_one(self, transaction: Transaction, job: Job) -> Job:  # noqa: ARG002
        return self._insert(job)


class StickyTransaction(Transaction):
    async def rollback(self) -> None:
        self.store.added(self.jobs)
        await super().rollback()


class KeepsWhatIsRolledBack(TakesPartInTransactions):
    """Adds jobs at the end of a transaction, even after a rollback."""

    transaction = StickyTransaction


class LooksForNoStoredJob(TakesPartInTransactions):
    async def insert_one(self, transaction: Transaction, job: Job) -> Job:
        transaction.jobs.append(job)
        return job


class LooksPastItsOwnTransaction(TakesPartInTransactions):
    async def insert_one(self, transaction: Transaction, job: Job) -> Job:
        if found := self.find(job, [*self._jobs.values()]):
            return found
        transaction.jobs.append(job)
        return job


class DoesNotWait(TakesPartInTransactions):
    async def wait_for_others(self, transaction: Transaction, job: Job) -> None:
        """Continue at once."""


class TakesAnyConnection(TakesPartInTransactions):
    def transaction_of(self, connection: object) -> Transaction:
        return connection if isinstance(connection, Transaction) else Transaction(self)


def alone(make: Callable[[], MemoryStore]) -> Fixtures:
    return lambda: {"store": make()}


def shared(make: Callable[[], MemoryStore]) -> Fixtures:
    def fixtures() -> dict[str, Any]:
        store = make()
        again = getattr(store, "opened_again", lambda: store)
        return {"store": store, "other": again()}

    return fixtures


def in_transactions(make: Callable[[], MemoryStore]) -> Fixtures:
    def fixtures() -> dict[str, Any]:
        store = make()
        return {"store": store, "begin": getattr(store, "begin", None)}

    return fixtures


SUITES: list[tuple[type, Callable[[Any], Fixtures], type[MemoryStore]]] = [
    (ListingConformance, alone, MemoryStore),
    (InlineReadsConformance, alone, MemoryStore),
    (InspectionConformance, alone, Inspects),
    (MigrationScriptConformance, alone, HasAScript),
    (Notices, shared, Notifies),
    (Output, shared, NoticesAppends),
    (TalliesConformance, shared, MemoryStore),
    (TransactionsConformance, in_transactions, TakesPartInTransactions),
]

BROKEN: list[tuple[type, Callable[[Any], Fixtures], type[MemoryStore], str]] = [
    *((ListingConformance, alone, store, rule) for store, rule in BROKEN_AT_LISTING),
    *((ListingConformance, alone, store, rule) for store, rule in BROKEN_AT_LABELS),
    *((TalliesConformance, shared, store, rule) for store, rule in BROKEN_AT_TALLIES),
    *((Output, shared, store, rule) for store, rule in BROKEN_AT_OUTPUT),
    (Output, shared, Notifies, "test_an_append_is_noticed_by_other_openers"),
    (InlineReadsConformance, alone, ReadsElsewhere, "test_a_read_waits_for_nothing"),
    *(
        (InspectionConformance, alone, store, rule)
        for store, rule in (
            (FindsNothing, "test_each_finding_names_a_subject_of_its_own"),
            (NamesASubjectTwice, "test_each_finding_names_a_subject_of_its_own"),
            (InspectsByTaking, "test_an_inspection_changes_nothing"),
        )
    ),
    *(
        (MigrationScriptConformance, alone, store, rule)
        for store, rule in (
            (MakesAScriptOnlyWhileOpen, "test_the_script_needs_no_open_store"),
            (KnowsEveryVersion, "test_an_unknown_version_is_refused"),
        )
    ),
    *(
        (Notices, shared, store, rule)
        for store, rule in (
            (NoticesNoDeletion, "test_what_another_opener_writes_is_noticed"),
            (NoticesFirstOfAll, "test_the_first_batch_comes_at_once_and_means_any_job"),
            (NoticesUpToALimit, "test_every_job_of_a_large_call_is_noticed"),
            (NotifiesOneFollower, "test_changes_can_be_followed_again"),
        )
    ),
    *(
        (TransactionsConformance, in_transactions, store, rule)
        for store, rule in (
            (InsertsAtOnce, "test_jobs_exist_when_the_transaction_commits"),
            (KeepsWhatIsRolledBack, "test_jobs_never_existed_if_the_transaction_is_rolled_back"),
            (LooksForNoStoredJob, "test_a_stored_job_of_the_same_id_or_key_is_returned"),
            (LooksPastItsOwnTransaction, "test_a_transaction_finds_what_it_has_inserted"),
            (DoesNotWait, "test_the_end_of_a_transaction_with_the_same_key_is_awaited"),
            (TakesAnyConnection, "test_what_is_no_connection_is_refused"),
        )
    ),
]


@pytest.mark.parametrize(("suite", "given", "store", "rule"), BROKEN, ids=named)
def test_a_broken_store_fails_the_rule_it_breaks(
    suite: type, given: Callable[[Any], Fixtures], store: type[MemoryStore], rule: str
) -> None:
    assert not keeps(suite, rule, given(store))


@pytest.mark.parametrize(("suite", "given", "store"), SUITES, ids=named)
def test_a_correct_store_fails_no_rule(
    suite: type, given: Callable[[Any], Fixtures], store: type[MemoryStore]
) -> None:
    rules = rules_of(suite, "store", "other", "begin")
    assert [rule for rule in rules if not keeps(suite, rule, given(store))] == []


@pytest.mark.parametrize("suite", [suite for suite, *_ in SUITES], ids=named)
def test_every_rule_is_broken_by_some_store(suite: type) -> None:
    broken = {rule for broken_suite, *_, rule in BROKEN if broken_suite is suite}
    if suite is ListingConformance:
        broken |= {rule for _, rule in BROKEN_BEFORE}
    assert {*rules_of(suite, "store", "other", "begin")} == broken

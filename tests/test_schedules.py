"""Schedules of a queue: declared, enqueued, listed, paused, run by hand and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    Job,
    JobContext,
    JobStatus,
    Policy,
    Schedule,
    Selection,
    Settings,
)
from asyncjobs.adapters.starlette import mount
from asyncjobs.core.job import JobId
from asyncjobs.core.schedules import record_id
from asyncjobs.errors import (
    ConfigurationError,
    InvalidIdempotencyKey,
    StoreUnavailable,
    UnknownJob,
    UnknownSchedule,
)
from asyncjobs.protocols import Change
from asyncjobs.runtime.transfer import copy_jobs, plan_transfer
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, ManualClock, run_jobs, run_jobs_async
from tests.queues import QUICK, Make
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
MIDNIGHT = datetime(2030, 1, 1, tzinfo=UTC)
LONG = Policy(retention=timedelta(days=1000))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(MIDNIGHT + timedelta(minutes=30))


def declare(jobs: AsyncJobs, **terms: Any) -> Any:
    """Register a handler that returns its tick, and a schedule for it."""

    @jobs.handler("export")
    async def export(_number: int, job: JobContext) -> datetime | None:
        return job.scheduled_at

    given: dict[str, Any] = {"every": HOUR, **terms}
    jobs.schedule("hourly", export, 7, **given)
    return export


@pytest.fixture
def by_hand(new_store: Callable[[], Any], clock: ManualClock) -> Iterator[Callable[..., AsyncJobs]]:
    """Make queues on the test's store in which only the test enqueues ticks."""
    ends: list[Any] = []

    def build(**terms: Any) -> AsyncJobs:
        jobs = AsyncJobs("memory://", policy=LONG)
        if terms != {"declared": False}:
            declare(jobs, **terms)
        block = jobs.using(new_store(), clock=clock)
        block.__enter__()
        ends.append(block)
        return jobs

    yield build
    for block in ends:
        block.__exit__(None, None, None)


def ignored(_phase: str, _done: int, _total: int) -> None: ...


async def the_only(jobs: AsyncJobs) -> Schedule:
    [schedule] = await jobs.schedules()
    return schedule


async def test_each_tick_makes_one_job_with_the_payload_of_the_schedule(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    options = EnqueueOptions(title="Customers", tags=("customer:42",), metadata={"a": 1})
    async with by_hand(user_id="ann", options=options) as jobs:
        assert await jobs.enqueue_ticks() == []
        for hour in (1, 2):
            clock.advance(MIDNIGHT + hour * HOUR - clock.now())
            [job] = await jobs.enqueue_ticks()
            assert (job.type, job.payload, job.user_id) == ("export", 7, "ann")
            assert (job.title, job.tags, job.metadata) == ("Customers", ("customer:42",), {"a": 1})
            assert await jobs.enqueue_ticks() == []
            [ran] = await run_jobs_async(jobs)
            assert (ran.id, ran.scheduled_at) == (job.id, MIDNIGHT + hour * HOUR)
            assert ran.result == f"2030-01-01T0{hour}:00:00Z"
            schedule = await the_only(jobs)
            assert (schedule.last_at, schedule.last_job) == (clock.now(), job.id)
            assert schedule.last_status is JobStatus.COMPLETED
            assert schedule.next_at == clock.now() + HOUR


async def test_processes_share_the_ticks_of_a_schedule(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    async with by_hand() as one, by_hand() as other:
        await one.enqueue_ticks()
        await other.enqueue_ticks()
        clock.advance(30 * MINUTE)
        found = [*await one.enqueue_ticks(), *await other.enqueue_ticks()]
        assert len(found) == 1


@pytest.mark.parametrize(("missed", "expected"), [("skip", []), ("once", [4])])
async def test_ticks_are_missed_while_no_process_is_open(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock, missed: str, expected: list[int]
) -> None:
    jobs = by_hand(missed=missed)
    async with jobs:
        await jobs.enqueue_ticks()
    clock.advance(4 * HOUR)  # to half an hour after a tick
    async with jobs:
        made = await jobs.enqueue_ticks()
        assert [job.scheduled_at for job in made] == [MIDNIGHT + n * HOUR for n in expected]
        assert (await the_only(jobs)).next_at == MIDNIGHT + 5 * HOUR


async def test_a_paused_schedule_enqueues_nothing_until_it_is_resumed(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    jobs = by_hand(missed="once")
    async with jobs:
        await jobs.pause_schedule("hourly")
        await jobs.pause_schedule("hourly")
        schedule = await the_only(jobs)
        assert (schedule.paused, schedule.next_at) == (True, None)
    clock.advance(3 * HOUR)
    async with jobs:  # a restart does not resume it
        assert await jobs.enqueue_ticks() == []
        assert (await the_only(jobs)).paused
        await jobs.resume_schedule("hourly")
        [job] = await jobs.enqueue_ticks()
        assert job.scheduled_at == MIDNIGHT + 3 * HOUR
        assert not (await the_only(jobs)).paused


async def test_a_deploy_with_another_definition_changes_the_ticks(
    by_hand: Callable[..., AsyncJobs],
) -> None:
    async with by_hand() as old:
        await old.pause_schedule("hourly")
    async with by_hand(every=None, cron="15 1 * * *", timezone="Europe/Berlin") as jobs:
        schedule = await the_only(jobs)
        assert (schedule.cron, schedule.timezone, schedule.every) == (
            "15 1 * * *",
            "Europe/Berlin",
            None,
        )
        assert schedule.paused
        await jobs.resume_schedule("hourly")
        assert (await the_only(jobs)).next_at == MIDNIGHT + timedelta(days=1, minutes=15)


async def test_during_a_deploy_the_newer_definition_says_when(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    async with by_hand() as old:
        await old.enqueue_ticks()
        async with by_hand(every=10 * MINUTE) as new:
            await new.enqueue_ticks()
            clock.advance(10 * MINUTE)
            [job] = await old.enqueue_ticks()
            assert job.scheduled_at == MIDNIGHT + 40 * MINUTE
            assert (await the_only(old)).every == 10 * MINUTE


async def test_a_schedule_runs_now_without_changing_its_ticks(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    async with by_hand() as jobs:
        await jobs.pause_schedule("hourly")
        handle = await jobs.run_schedule_now("hourly")
        [job] = await run_jobs_async(jobs)
        assert (handle.id, job.scheduled_at) == (job.id, clock.now())
        assert (await the_only(jobs)).last_job is None
        with pytest.raises(UnknownSchedule, match="'nightly'"):
            await jobs.run_schedule_now("nightly")


async def test_only_a_process_that_declares_a_schedule_enqueues_and_runs_it(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    async with by_hand() as declaring, by_hand(declared=False) as other:
        assert (await the_only(declaring)).declared
        clock.advance(30 * MINUTE)
        assert await other.enqueue_ticks() == []
        assert not (await the_only(other)).declared
        with pytest.raises(ConfigurationError, match="not declared in this process"):
            await other.run_schedule_now("hourly")
        assert len(await declaring.enqueue_ticks()) == 1


async def test_a_schedule_that_no_code_declares_can_be_removed(
    by_hand: Callable[..., AsyncJobs],
) -> None:
    async with by_hand() as declaring, by_hand(declared=False) as other:
        await declaring.schedules()
        with pytest.raises(ConfigurationError, match="remove its declaration first"):
            await declaring.remove_schedule("hourly")
        await other.remove_schedule("hourly")
        assert await other.schedules() == []
        for change in (other.remove_schedule, other.pause_schedule, other.resume_schedule):
            with pytest.raises(UnknownSchedule):
                await change("hourly")


async def test_a_removed_schedule_returns_if_a_process_declares_it(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with by_hand() as declaring, by_hand(declared=False) as other:
        await declaring.enqueue_ticks()
        clock.advance(30 * MINUTE)
        assert len(await declaring.enqueue_ticks()) == 1
        assert "was removed" not in caplog.text
        await other.remove_schedule("hourly")
        assert await declaring.enqueue_ticks() == []
        assert "'hourly' was removed from the store" in caplog.text
        assert (await the_only(other)).next_at == MIDNIGHT + 2 * HOUR
        clock.advance(HOUR)
        [job] = await declaring.enqueue_ticks()
        assert job.scheduled_at == MIDNIGHT + 2 * HOUR


async def test_a_tick_has_one_job_although_its_schedule_was_removed(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    async with by_hand() as ahead, by_hand(declared=False) as other:
        await ahead.enqueue_ticks()
        clock.advance(30 * MINUTE)
        [job] = await ahead.enqueue_ticks()
        await other.remove_schedule("hourly")
        clock.advance(-MINUTE)  # as the clock of another process, which has not had the tick
        async with by_hand() as behind:
            await behind.enqueue_ticks()
            clock.advance(MINUTE)
            [found] = await behind.enqueue_ticks()
            assert (found.id, found.scheduled_at) == (job.id, MIDNIGHT + HOUR)
            assert len((await behind.list(Selection(type="export"))).jobs) == 1


async def test_the_record_of_a_schedule_is_not_a_job_for_users(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock
) -> None:
    async with by_hand() as jobs:
        seen: list[Job] = []
        for event in ("enqueued", "forgotten"):
            jobs.on(event, lambda transition: seen.append(transition.job))
        await jobs.schedules()
        record = record_id("hourly")
        assert await jobs.get(record) is None
        for selection in (Selection(), Selection(type="asyncjobs.schedule")):
            assert (await jobs.list(selection)).jobs == []
        calls: list[Callable[[JobId], Any]] = [jobs.find, jobs.cancel, jobs.retry, jobs.wait]
        for call in calls:
            with pytest.raises(UnknownJob):
                await call(record)
        assert await jobs.run(record) is None
        assert set((await jobs.oldest_waiting()).values()) == {timedelta(0)}
        clock.advance(timedelta(days=36500) - HOUR)
        await jobs.sweep()
        assert len(await jobs.schedules()) == 1
        await jobs.until_hooks_called()
        assert seen == []


async def test_a_transfer_carries_schedules(
    by_hand: Callable[..., AsyncJobs], new_store: Callable[[], Any]
) -> None:
    async with by_hand() as jobs:
        await jobs.pause_schedule("hourly")
    target = MemoryStore()
    async with new_store() as source:
        plan = await plan_transfer(source, target)
        assert (await copy_jobs(source, target, plan, ignored)).copied == 1
    async with AsyncJobs(target) as moved:
        assert (await the_only(moved)).paused


async def test_users_cannot_use_the_keys_of_ticks(by_hand: Callable[..., AsyncJobs]) -> None:
    async with by_hand() as jobs:
        with pytest.raises(InvalidIdempotencyKey, match="reserved"):
            await jobs.enqueue("export", 7, idempotency_key="asyncjobs.schedule:hourly:x")


async def test_an_open_queue_enqueues_ticks_by_itself(make: Make) -> None:
    jobs = make()
    declare(jobs, every=1)
    async with jobs:

        async def ticks() -> list[Job]:
            return [*(await jobs.list(Selection(type="export"))).jobs]

        async def has_two() -> bool:
            return len(await ticks()) >= 2

        await until(has_two)
        moments = [job.scheduled_at for job in await ticks()]
    assert len(set(moments)) == len(moments)
    assert all(moment is not None and moment.microsecond == 0 for moment in moments)


async def test_a_resumed_schedule_goes_on_by_itself(make: Make) -> None:
    one, other = make(), make()
    declare(one, every=1)
    async with one, other:
        await until(lambda: has_ticked(one))
        await other.pause_schedule("hourly")
        paused = await the_only(one)
        await other.resume_schedule("hourly")

        async def ticks_again() -> bool:
            last_at = (await the_only(one)).last_at
            return last_at is not None and last_at > (paused.last_at or last_at)

        await until(ticks_again)


async def test_a_removed_schedule_goes_on_by_itself(make: Make) -> None:
    one, other = make(), make()
    declare(one, every=1)
    async with one, other:
        await until(lambda: has_ticked(one))
        await other.remove_schedule("hourly")

        async def ticks_again() -> bool:
            found = await other.schedules()
            return bool(found) and found[0].last_job is not None

        await until(ticks_again)
        jobs = (await other.list(Selection(type="export"))).jobs
        moments = [job.scheduled_at for job in jobs]
        assert len(set(moments)) == len(moments)


async def has_ticked(jobs: AsyncJobs) -> bool:
    return (await the_only(jobs)).last_job is not None


@pytest.mark.own_store
async def test_a_store_that_is_away_delays_ticks_and_stops_nothing() -> None:
    store = FaultyStore(MemoryStore())
    jobs = AsyncJobs(store, settings=QUICK)
    declare(jobs, every=1)
    store.faults = Faults(before=1)
    async with jobs:
        with pytest.raises(StoreUnavailable):
            await jobs.schedules()
        store.faults = Faults()
        await until(lambda: has_ticked(jobs))


class Dying(FaultyStore):
    """Fails at every call that changes something, from the nth one on."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.left: int | None = None

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        self._step()
        return await super().insert(jobs)

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        self._step()
        return await super().replace(changes)

    def _step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailable("memory", "the process has died")


@pytest.mark.own_store
@pytest.mark.parametrize("writes", range(4))
async def test_a_crash_after_any_write_neither_repeats_nor_loses_a_tick(
    clock: ManualClock, writes: int
) -> None:
    base = MemoryStore()
    dying = Dying(base)
    one, other = AsyncJobs("memory://", policy=LONG), AsyncJobs("memory://", policy=LONG)
    for jobs in (one, other):
        declare(jobs)
    with one.using(dying, clock=clock), other.using(base, clock=clock):
        async with one, other:
            await one.enqueue_ticks()
            clock.advance(30 * MINUTE)
            dying.left = writes
            if writes < 3:  # the tick, the job, the job's id
                with pytest.raises(StoreUnavailable):
                    await one.enqueue_ticks()
            else:
                assert len(await one.enqueue_ticks()) == 1
            assert await other.enqueue_ticks() == []  # held by the first process
            clock.advance(other.settings.redelivery)
            assert len(await other.enqueue_ticks()) == (writes < 3)
            [job] = (await other.list(Selection(type="export"))).jobs
            schedule = await the_only(other)
            assert (schedule.last_at, schedule.last_job) == (MIDNIGHT + HOUR, job.id)
            assert schedule.next_at == MIDNIGHT + 2 * HOUR
            dying.left = None


async def interrupted(jobs: AsyncJobs, dying: Dying, *, writes: int) -> None:
    """Enqueue due ticks in a process that dies after some writes."""
    dying.left = writes
    with pytest.raises(StoreUnavailable):
        await jobs.enqueue_ticks()
    dying.left = None


@pytest.mark.own_store
@pytest.mark.parametrize("writes", [1, 2])
async def test_an_interrupted_tick_is_finished_after_a_pause(
    clock: ManualClock, writes: int
) -> None:
    dying = Dying(MemoryStore())
    jobs = AsyncJobs("memory://", policy=LONG)
    declare(jobs, missed="once")
    with jobs.using(dying, clock=clock):
        async with jobs:
            await jobs.enqueue_ticks()
            clock.advance(30 * MINUTE)
            await interrupted(jobs, dying, writes=writes)
            await jobs.pause_schedule("hourly")
            clock.advance(2 * MINUTE)
            assert await jobs.enqueue_ticks() == []
            await jobs.resume_schedule("hourly")
            [job] = await jobs.enqueue_ticks()
            assert job.scheduled_at == MIDNIGHT + HOUR
            assert len((await jobs.list(Selection())).jobs) == 1
            schedule = await the_only(jobs)
            assert (schedule.last_job, schedule.next_at) == (job.id, MIDNIGHT + 2 * HOUR)


@pytest.mark.own_store
@pytest.mark.parametrize("writes", [1, 2])
async def test_an_interrupted_tick_has_one_job_after_a_deploy(
    clock: ManualClock, writes: int
) -> None:
    """The new version has another handler, another owner and other times."""
    base = MemoryStore()
    dying = Dying(base)
    old, new = AsyncJobs("memory://", policy=LONG), AsyncJobs("memory://", policy=LONG)
    declare(old)
    new.schedule("hourly", new.handler("export2")(lambda_of_number), 7, every=300, user_id="ann")
    with old.using(dying, clock=clock), new.using(base, clock=clock):
        async with old, new:
            await old.enqueue_ticks()
            clock.advance(30 * MINUTE)
            await interrupted(old, dying, writes=writes)
            assert (await the_only(new)).next_at == MIDNIGHT + HOUR + 5 * MINUTE
            clock.advance(new.settings.redelivery)
            [job] = await new.enqueue_ticks()
            assert (job.type, job.scheduled_at) == (
                ["export2", "export"][writes - 1],
                clock.now() - new.settings.redelivery,
            )
            assert len((await new.list(Selection())).jobs) == 1
            assert (await the_only(new)).last_job == job.id


@pytest.mark.own_store
async def test_a_tick_of_long_ago_survives_an_interruption(clock: ManualClock) -> None:
    dying = Dying(MemoryStore())
    jobs = AsyncJobs("memory://", policy=Policy(retention=MINUTE))
    declare(jobs, missed="once")
    with jobs.using(dying, clock=clock):
        async with jobs:
            await jobs.enqueue_ticks()
            clock.advance(50 * MINUTE)
            await interrupted(jobs, dying, writes=1)
            clock.advance(jobs.settings.redelivery)
            [job] = await jobs.enqueue_ticks()
            assert job.scheduled_at == MIDNIGHT + HOUR


@pytest.mark.own_store
async def test_an_interrupted_tick_is_finished_after_a_long_redelivery(clock: ManualClock) -> None:
    dying = Dying(MemoryStore())
    jobs = AsyncJobs("memory://", settings=Settings(redelivery=5 * MINUTE))
    declare(jobs)
    with jobs.using(dying, clock=clock):
        async with jobs:
            await jobs.enqueue_ticks()
            clock.advance(30 * MINUTE)
            await interrupted(jobs, dying, writes=1)
            clock.advance(5 * MINUTE)
            [job] = await jobs.enqueue_ticks()
            assert job.scheduled_at == MIDNIGHT + HOUR


class Refusing(MemoryStore):
    """Has a fault that no repetition overcomes: it inserts no jobs of users."""

    refuses = False

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        if self.refuses:
            raise ValueError("no")
        return await super().insert(jobs)


@pytest.mark.own_store
async def test_a_tick_whose_job_cannot_be_made_does_not_stop_those_after_it(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = Refusing()
    jobs = AsyncJobs("memory://", policy=Policy(retention=None))
    declare(jobs, missed="once")
    with jobs.using(store, clock=clock):
        async with jobs:
            await jobs.enqueue_ticks()
            store.refuses = True
            clock.advance(30 * MINUTE)
            for _ in range(4):
                assert await jobs.enqueue_ticks() == []
                clock.advance(jobs.settings.redelivery)
            store.refuses = False
            assert "The job of schedule 'hourly' failed" in caplog.text
            clock.advance(HOUR)
            [job] = await jobs.enqueue_ticks()
            assert job.scheduled_at == MIDNIGHT + 2 * HOUR


async def test_a_clock_that_was_wrong_for_a_while_does_not_stop_a_schedule(
    by_hand: Callable[..., AsyncJobs], clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with by_hand(missed="once") as jobs:
        await jobs.enqueue_ticks()
        clock.advance(timedelta(days=365))
        assert len(await jobs.enqueue_ticks()) == 1
        clock.advance(timedelta(days=-365))
        assert await jobs.enqueue_ticks() == []
        assert "A clock was far ahead" in caplog.text
        clock.advance(30 * MINUTE)
        [job] = await jobs.enqueue_ticks()
        assert job.scheduled_at == MIDNIGHT + HOUR


@pytest.mark.own_store
async def test_a_tick_whose_job_was_deleted_already_is_not_repeated(clock: ManualClock) -> None:
    """The process dies after it stored the job, which is gone before another one goes on."""
    dying = Dying(MemoryStore())
    jobs = AsyncJobs("memory://", policy=Policy(retention=SECOND))
    declare(jobs, missed="once")
    with jobs.using(dying, clock=clock):
        async with jobs:
            await jobs.enqueue_ticks()
            clock.advance(30 * MINUTE)
            dying.left = 2
            with pytest.raises(StoreUnavailable):
                await jobs.enqueue_ticks()
            dying.left = None
            [job] = await run_jobs_async(jobs)
            clock.advance(10 * MINUTE)
            await jobs.sweep()
            assert await jobs.get(job.id) is None
            assert await jobs.enqueue_ticks() == []
            schedule = await the_only(jobs)
            assert (schedule.last_at, schedule.next_at) == (MIDNIGHT + HOUR, MIDNIGHT + 2 * HOUR)


@pytest.mark.own_store
async def test_a_store_that_cannot_list_shows_the_declared_schedules() -> None:
    class Plain(MemoryStore):
        powers: frozenset[type] = frozenset()

    jobs = AsyncJobs(Plain())
    declare(jobs)
    async with jobs:
        assert (await the_only(jobs)).name == "hourly"


@pytest.mark.own_store
def test_a_test_makes_ticks_happen_with_its_clock() -> None:
    jobs, clock = AsyncJobs("memory://"), ManualClock()
    declare(jobs)
    with jobs.using(clock=clock):
        [hourly] = jobs.sync.schedules()
        assert hourly.next_at is not None
        clock.advance(hourly.next_at - clock.now())
        assert len(jobs.sync.enqueue_ticks()) == 1
        [job] = run_jobs(jobs)
        assert job.scheduled_at == hourly.next_at
        jobs.sync.pause_schedule("hourly")
        jobs.sync.resume_schedule("hourly")
        assert jobs.sync.run_schedule_now("hourly").job.payload == 7
        with pytest.raises(ConfigurationError):
            jobs.sync.remove_schedule("hourly")


def no_payload() -> None: ...


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, "The name of a schedule"),
    ({"name": "used"}, "declared twice"),
    ({"handler": "unknown"}, "No job type 'unknown'"),
    ({"handler": no_payload}, "not a handler"),
    ({"payload": "seven"}, "payload is not valid"),
    ({"payload": 10**20}, "bytes"),
    ({"every": None}, "either cron"),
    ({"cron": "0 3 * * *"}, "either cron"),
    ({"every": 0.5}, "between 1 second"),
    ({"every": None, "cron": "99 * * * *"}, "'99 \\* \\* \\* \\*' is not valid: Bad minute"),
    ({"every": None, "cron": "* * */20 * 1L"}, "never fires"),
    ({"every": None, "cron": "0 0 30 2 *"}, "'0 0 30 2 \\*' never fires"),
    ({"every": None, "cron": "0 0 0 31 4,6 *"}, "never fires"),
    ({"every": None, "cron": "0 0 32 2 *"}, "is not valid: Bad day-of-month"),
    ({"every": None, "cron": "0 0 30 13 *"}, "is not valid: Bad month"),
    ({"every": None, "cron": "0 0 * *"}, "is not valid: Wrong number of fields"),
    ({"every": None, "cron": "@daily"}, "macros do not work"),
    ({"every": None, "cron": "9" * 5000 + " * * * *"}, "a number is too long"),
    ({"every": None, "cron": 5}, "cron must be a string"),
    ({"every": None, "cron": "0 3 * * *", "timezone": "Mars"}, "no time zone 'Mars'"),
    ({"timezone": "UTC"}, "intervals have none"),
    ({"missed": "all"}, "skip"),
    ({"user_id": 42}, "user_id must be a string"),
    ({"user_id": "\ud800"}, "user_id"),
    ({"options": EnqueueOptions(run_at=5)}, "run_at"),
    ({"options": {}}, "must be EnqueueOptions"),
    ({"options": EnqueueOptions(callback_url="https://a.example/")}, "callbacks"),
]


@pytest.mark.own_store
@pytest.mark.parametrize(("terms", "message"), MISTAKES)
def test_a_mistake_is_reported_where_it_is_made(terms: dict[str, Any], message: str) -> None:
    jobs = AsyncJobs("memory://", policy=Policy(max_payload_bytes=10))
    export = jobs.handler("export")(lambda_of_number)
    jobs.schedule("used", export, 1, every=1)
    given: dict[str, Any] = {"name": "n", "handler": export, "payload": 1, "every": 1, **terms}
    name, handler, payload = (given.pop(key) for key in ("name", "handler", "payload"))
    with pytest.raises(ConfigurationError, match=message):
        jobs.schedule(name, handler, payload, **given)
    assert [*jobs.declared_schedules] == ["used"]


def lambda_of_number(number: int) -> int:
    return number


@pytest.mark.own_store
def test_the_record_of_a_schedule_has_no_url() -> None:
    jobs, app = AsyncJobs("memory://"), Starlette()
    declare(jobs)
    mount(app, jobs)
    with TestClient(app) as client:
        assert len(jobs.sync.schedules()) == 1
        url = f"/api/jobs/{record_id('hourly')}"
        assert {client.get(url).status_code, client.delete(url).status_code} == {404}


@pytest.mark.own_store
def test_the_types_of_the_library_are_no_names_for_handlers() -> None:
    with pytest.raises(ConfigurationError, match="reserved"):
        AsyncJobs("memory://").handler("asyncjobs.schedule")(lambda_of_number)


@pytest.mark.own_store
def test_a_later_change_of_a_payload_does_not_change_the_schedule(tmp_path: Path) -> None:
    jobs = AsyncJobs(f"sqlite:///{tmp_path}/jobs.db")
    seen: list[list[int]] = []

    @jobs.handler("export")
    def export(numbers: list[int]) -> None:
        seen.append(numbers)

    numbers = [1]
    jobs.schedule("hourly", export, numbers, every=HOUR)
    numbers.append(2)
    with jobs.using():
        jobs.sync.run_schedule_now("hourly")
        run_jobs(jobs)
    assert seen == [[1]]

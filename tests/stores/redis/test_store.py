"""A store in one namespace of a shared server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import JobId, JobStatus, new_job_id
from asyncjobs.errors import (
    ConfigurationError,
    InvalidQuery,
    NotOpen,
    SchemaError,
    StoreUnavailable,
    UnreadableJob,
)
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores import store_from_url
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import (
    ChangeNoticesConformance,
    InspectionConformance,
    ListingConformance,
    OutputStreamsConformance,
    StoreClockConformance,
    StoreConformance,
    TalliesConformance,
    sample_job,
)
from asyncjobs.testing.samples import (
    LANE,
    LATER,
    NOW,
    begun,
    change_of,
    ended,
    failed,
    full_job,
    ids,
)
from tests.stores.opening import open_and_close
from tests.stores.redis.keys import key_of
from tests.waiting import until

pytestmark = pytest.mark.anyio

Serve = Callable[..., Any]


class TestRedisStore(
    StoreConformance,
    ChangeNoticesConformance,
    InspectionConformance,
    ListingConformance,
    OutputStreamsConformance,
    StoreClockConformance,
    TalliesConformance,
):
    @pytest.fixture
    def store(self, redis_url: str, namespace: str) -> RedisStore:
        return RedisStore(redis_url, namespace=namespace)

    @pytest.fixture
    def opener(self, redis_url: str, namespace: str) -> Callable[[], RedisStore]:
        return partial(RedisStore, redis_url, namespace=namespace)


# opening


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
async def test_a_url_names_a_server_and_a_namespace(scheme: str) -> None:
    made = store_from_url(f"{scheme}://u:p@127.0.0.1:1/3?namespace=shop")
    assert isinstance(made, RedisStore)
    assert made.namespace == "shop"
    secure = "rediss" if scheme.endswith("s") and scheme != "redis" else "redis"
    with pytest.raises(StoreUnavailable, match=f"{secure}://127.0.0.1:1/3 "):
        await open_and_close(made)


def test_a_url_of_another_service_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="redis://host:port/database"):
        RedisStore("memcached://localhost")


@pytest.mark.parametrize(
    "url",
    [
        "redis:host",
        "redis://:secret@host/shop",
        "rediss://host/0/1",
        "valkey://host/-1",
    ],
)
def test_a_database_that_is_no_number_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the database must be a number") as caught:
        store_from_url(url)
    assert not any(part in str(caught.value) for part in ("secret", "sec/", "ret@"))


@pytest.mark.parametrize("namespace", ["", "a{b", "a}b"])
def test_a_namespace_is_one_hash_tag(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        RedisStore("redis://localhost", namespace=namespace)


@pytest.mark.parametrize("options", ["nonsense=1", "db=one", "protocol=9"])
async def test_options_that_the_driver_does_not_know_are_named(
    redis_url: str, options: str
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await open_and_close(RedisStore(f"{redis_url}?{options}"))


async def test_a_closed_store_raises_not_open_without_its_password() -> None:
    with pytest.raises(NotOpen) as caught:
        await RedisStore("redis://:secret@localhost").get([])
    assert "secret" not in str(caught.value)


def test_event_loops_other_than_asyncio_are_refused(store: RedisStore) -> None:
    with pytest.raises(ConfigurationError, match="asyncio"):
        anyio.run(open_and_close, store, backend="trio")


@pytest.mark.parametrize(
    ("found", "reason"),
    [("2", "schema version 2"), ("diary", "another program")],
)
async def test_keys_of_another_version_or_program_are_left_alone(
    store: RedisStore, tell: Any, found: str, reason: str
) -> None:
    tell("SET", key_of(store, "schema"), found)
    with pytest.raises(SchemaError, match=reason):
        await open_and_close(store)
    assert tell("GET", key_of(store, "schema")) == found


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("schema", ("HSET", "day", "monday")),
        ("sequence", ("RPUSH", "monday")),
        ("held", ("SET", "monday")),
        ("all", ("SADD", "monday")),
    ],
)
async def test_keys_of_another_redis_type_are_left_alone(
    store: RedisStore, tell: Any, name: str, put: tuple[str, ...]
) -> None:
    key = key_of(store, name)
    tell(put[0], key, *put[1:])
    with pytest.raises(SchemaError, match="another program"):
        await open_and_close(store)
    assert tell("KEYS", f"{{{store.namespace}}}*") == [key]


async def test_namespaces_of_one_server_are_independent(store: RedisStore, redis_url: str) -> None:
    elsewhere = RedisStore(f"{redis_url}?namespace={store.namespace}-too")
    job = sample_job(idempotency_key="k")
    async with store, elsewhere:
        await store.insert([job])
        assert list(await elsewhere.get([job.id])) == [None]
        assert list((await elsewhere.list(Selection(), limit=9)).jobs) == []


FORKED = """
import anyio, os, sys, threading
from asyncjobs.errors import NotOpen
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import sample_job

async def child(store):
    try:
        await store.get([])
    except NotOpen:
        print("not open")
    async with store:
        await store.insert([sample_job()])
        print("written")

async def main(store):
    async with store:
        await store.insert([sample_job()])
        if os.fork() == 0:
            thread = threading.Thread(target=anyio.run, args=(child, store))
            thread.start()
            thread.join()
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        await store.insert([sample_job()])
        print("and the parent goes on")

anyio.run(main, RedisStore(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forking is POSIX")
def test_a_forked_child_opens_its_own_connections(redis_url: str, namespace: str) -> None:
    command = [sys.executable, "-W", "error", "-c", FORKED, f"{redis_url}?namespace={namespace}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["not open", "written", "and the parent goes on"]
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr


# many, and large


async def test_many_jobs_keep_their_order_across_batches(store: RedisStore) -> None:
    jobs = [sample_job() for _ in range(700)]
    async with store:
        assert list(await store.insert(jobs)) == jobs
        assert list(await store.get(ids(jobs))) == jobs
        page = await store.list(Selection(), limit=600)
        assert ids(page.jobs) == ids(jobs)[:99:-1]
        assert await store.count_before(jobs[-1], until=LATER, most=9999) == 699
        taken = await store.take([LANE], now=NOW, until=LATER, limit=650)
        assert ids(taken) == ids(jobs)[:650]
        assert all(await store.replace([Change(begun(job), job.revision) for job in jobs]))


async def test_changes_of_one_job_keep_their_order_across_batches(
    store: RedisStore,
) -> None:
    job, others = sample_job(), [sample_job() for _ in range(200)]
    started = begun(job)
    done = lifecycle.complete(started, LATER, token="t", result=b"1")
    async with store:
        await store.insert([job, *others])
        between = [Change(begun(one), one.revision) for one in others]
        first, last = Change(started, job.revision), Change(done, started.revision)
        assert all(await store.replace([first, *between, last]))


async def test_large_jobs_are_written_and_taken_in_small_batches(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncjobs.stores.redis.scripts.MAX_SCRIPT_BYTES", 2500)
    jobs = [sample_job(payload_json=b'"' + b"x" * 1000 + b'"') for _ in range(10)]
    async with store:
        await store.insert(jobs)
        assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == ids(jobs[:9])


async def test_large_jobs_are_read_in_small_batches(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    monkeypatch.setattr("asyncjobs.stores.redis.scripts.MAX_SCRIPT_BYTES", 2500)
    jobs = [sample_job(payload_json=b'"' + b"x" * 1000 + b'"') for _ in range(10)]
    unknown = sample_job()
    async with store:
        await store.insert(jobs)
        tell("CONFIG", "RESETSTAT")
        found = await store.get([unknown.id, *ids(jobs[:5]), unknown.id, *ids(jobs[5:])])
        calls = tell("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    assert list(found) == [None, *jobs[:5], None, *jobs[5:]]
    assert calls >= 4


async def test_jobs_of_a_rare_type_are_found_among_many(store: RedisStore) -> None:
    rare = [sample_job(type="rare") for _ in range(3)]
    many = [sample_job() for _ in range(600)]
    async with store:
        await store.insert([rare[0], *many[:550], *rare[1:], *many[550:]])
        first = await store.list(Selection(type="rare"), limit=2)
        rest = await store.list(Selection(type="rare"), limit=2, after=first.next)
    assert ids([*first.jobs, *rest.jobs]) == ids(rare[::-1])
    assert rest.next is None


async def test_jobs_are_found_among_the_members_of_many_batches(store: RedisStore) -> None:
    large, small = new_job_id(), [new_job_id() for _ in range(40)]
    jobs = [
        sample_job(
            tags=("a",) if place % 7 == 0 else ("b",),
            batch=None if place % 35 == 0 else small[place % 40] if place % 5 == 0 else large,
        )
        for place in range(1400)
    ]
    async with store:
        await store.insert(jobs)
        for which in (Selection(members=False), Selection(tag="a", members=False)):
            found: list[JobId] = []
            after = None
            while not found or after is not None:
                page = await store.list(which, limit=15, after=after)
                found += ids(page.jobs)
                after = page.next
            assert found == [job.id for job in reversed(jobs) if which.fits(job)]


async def test_completed_jobs_of_a_type_have_an_index(store: RedisStore, tell: Any) -> None:
    one, two = sample_job(), sample_job(type="import")
    async with store:
        await store.insert([one, two, sample_job()])
        done = await ended(store, one, b"1")
        await ended(store, two, b"1")
        page = await store.list(Selection(None, "export", JobStatus.COMPLETED), limit=9)
        assert ids(page.jobs) == [done.id]
        assert tell("ZCARD", key_of(store, "completed:export")) == 1


async def test_the_index_of_completed_jobs_follows_the_status(store: RedisStore, tell: Any) -> None:
    job = lifecycle.complete(begun(sample_job()), LATER, token="t", result=b"1")
    async with store:
        await store.insert([job])
        which = Selection(None, job.type, JobStatus.COMPLETED)
        assert ids((await store.list(which, limit=9)).jobs) == [job.id]
        reopened = job.model_copy(update={"status": JobStatus.PENDING, "revision": 9})
        await store.replace([Change(reopened, job.revision)])
        assert list((await store.list(which, limit=9)).jobs) == []
        assert tell("ZCARD", key_of(store, f"completed:{job.type}")) == 0


async def test_deleting_every_job_leaves_a_counter_and_the_schema(
    store: RedisStore, tell: Any
) -> None:
    owned = [sample_job(user_id=owner, idempotency_key=owner) for owner in ("", "ann", "{b}")]
    member = sample_job(batch=new_job_id(), tags=("a", "b\t{c}"), user_id="ann")
    jobs = [*owned, full_job(), member, sample_job(queue="other"), sample_job(retention=None)]
    async with store:
        await store.insert(jobs)
        await store.take([LANE], now=NOW, until=LATER, limit=2)
        await ended(store, jobs[0], b"1")
        await ended(store, jobs[-1], b"1")
        await store.replace([change_of(member, failed(member))])
        await store.delete(ids(jobs))
    keys = tell("KEYS", f"{{{store.namespace}}}*")
    assert sorted(keys) == sorted([key_of(store, "schema"), key_of(store, "sequence")])


# missing and unreadable jobs


async def test_a_job_that_vanished_does_not_hide_others(store: RedisStore, tell: Any) -> None:
    gone = sample_job(user_id="ann", idempotency_key="k")
    kept, new = sample_job(user_id="ann"), sample_job(user_id="ann", idempotency_key="k")
    which = Selection(user_id="ann")
    async with store:
        await store.insert([gone, kept])
        tell("UNLINK", key_of(store, f"job:{gone.id}"))
        assert list(await store.get([gone.id])) == [None]
        assert list(await store.replace([Change(begun(gone), gone.revision)])) == [False]
        assert ids((await store.list(which, limit=9)).jobs) == [kept.id]
        assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == [kept.id]
        assert await store.count_before(gone, until=LATER, most=9) == 0
        assert list(await store.insert([new])) == [new]
        assert tell("ZCARD", key_of(store, f"due:{LANE}")) == 2
        assert tell("ZCARD", key_of(store, "owner:ann")) == 2
        await store.delete([gone.id])
        assert list((await store.list(Selection(), limit=9)).jobs) != []
        assert tell("ZSCORE", key_of(store, "all"), gone.id) is None


@pytest.mark.parametrize(
    "damage", [("HSET", "state", "{}"), ("HSET", "revision", "x"), ("HDEL", "payload")]
)
async def test_an_unreadable_job_does_not_block_others(
    store: RedisStore, tell: Any, caplog: pytest.LogCaptureFixture, damage: tuple[str, ...]
) -> None:
    bad, good = sample_job(), sample_job()
    async with store:
        await store.insert([bad, good])
        tell(damage[0], key_of(store, f"job:{bad.id}"), *damage[1:])
        taken = await store.take([LANE], now=NOW, until=LATER, limit=9)
        assert ids(taken) == [good.id]
        with pytest.raises(UnreadableJob, match=bad.id):
            await store.get([bad.id])
        assert list(await store.get([good.id])) == taken
    assert bad.id in caplog.text


async def test_due_times_are_exact_to_the_microsecond_for_centuries(store: RedisStore) -> None:
    moments = [datetime(2254, 12, 31, 23, 59, 59, n, tzinfo=UTC) for n in (999_999, 999_998)]
    jobs = [sample_job().model_copy(update={"due_at": moment}) for moment in moments]
    async with store:
        await store.insert(jobs)
        assert ids(await store.take([LANE], now=moments[1], until=LATER, limit=9)) == [jobs[1].id]


async def test_a_cursor_with_other_number_syntax_is_refused(store: RedisStore) -> None:
    async with store:
        for cursor in ("+inf", "1e3", "٣"):
            with pytest.raises(InvalidQuery, match="cursor"):
                await store.list(Selection(), limit=1, after=cursor)


# notices


async def test_notices_name_jobs_of_other_processes_but_not_own_changes(
    store: RedisStore, other: RedisStore
) -> None:
    mine, job = sample_job(), sample_job()
    with anyio.fail_after(60):
        async with store, other, aclosing(store.changes()) as changes:
            assert list(await anext(changes)) == []  # listening
            await store.insert([mine])
            await other.insert([job])
            assert list(await anext(changes)) == [job.id]
            await other.replace([Change(begun(mine), mine.revision)])
            assert list(await anext(changes)) == [mine.id]
            await other.take([LANE], now=NOW, until=LATER, limit=9)
            await other.delete([job.id])
            assert list(await anext(changes)) == [job.id]


async def test_many_concurrent_changes_share_one_notice(
    store: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [sample_job() for _ in range(3)]
    with anyio.fail_after(60):
        async with store, other, aclosing(store.changes()) as changes:
            await anext(changes)
            for job in jobs:
                await other.insert([job])
            await other.replace([Change(begun(jobs[0]), 1)])
            assert set(await told(changes, 3)) == set(ids(jobs))
            monkeypatch.setattr("asyncjobs.stores.redis.notices.MAX_IDS_PER_BATCH", 1)
            await other.delete([job.id for job in jobs])
            assert list(await anext(changes)) == []


async def test_an_idle_subscription_is_pinged_and_continues(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncjobs.stores.redis.notices.SILENCE_SECONDS", 0.001)
    server, job = serve(), sample_job()
    noticed: list[Sequence[JobId]] = []

    async def listen(changes: AsyncIterator[Sequence[JobId]]) -> None:
        noticed.append(await anext(changes))

    def pings() -> int:
        return int(server.ask("INFO", "commandstats")["cmdstat_ping"]["calls"])

    async with RedisStore(server.url) as store, aclosing(store.changes()) as changes:
        await anext(changes)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, changes)
            before = pings()
            await until(lambda: pings() > before + 20)
            assert noticed == []
            async with RedisStore(server.url) as other:
                await other.insert([job])
    assert [list(ids) for ids in noticed] == [[job.id]]


async def told(changes: Any, number: int) -> list[str]:
    found: list[str] = []
    while len(found) < number:
        found += await anext(changes)
    return found

"""A Redis server that is killed, full, read-only, silent, or replaced by another one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import anyio
import pytest
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError

from asyncjobs.core.job import Job, new_job_id
from asyncjobs.errors import SchemaError, StoreUnavailable
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import (
    ListingConformance,
    OutputStreamsConformance,
    StoreConformance,
    TalliesConformance,
    TcpProxy,
    sample_job,
)
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, change_of, ended, failed, ids
from tests.stores.opening import open_and_close
from tests.waiting import until_sync

pytestmark = pytest.mark.anyio

Serve = Callable[..., Any]
DAY = timedelta(days=1)


# unavailable, silent, or disconnecting


async def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable, match=r"redis://127.0.0.1:1 ") as caught:
        await open_and_close(RedisStore("valkey://:secret@127.0.0.1:1"))
    assert caught.value.__cause__ is not None
    assert "secret" not in str(caught.value)


async def test_calls_of_a_silent_server_time_out() -> None:
    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):
            await anyio.sleep_forever()
        writer.close()

    async with answering(say_nothing) as url:
        with anyio.fail_after(60):
            with pytest.raises(StoreUnavailable, match="Timeout"):
                await open_and_close(RedisStore(url, timeout=0.05))


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ("redis_version:6.2.14", "Redis 6.2.14"),
        ("redis_version:7.2.4\r\nvalkey_version:7.2.9", "Valkey 7.2.9"),
    ],
)
async def test_a_server_of_an_old_version_is_refused(about: str, named: str) -> None:
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(4096):
            for _ in range(command.count(b"*")):
                text = about.encode() if b"INFO\r\n" in command else b"OK"
                writer.write(b"$%d\r\n%s\r\n" % (len(text), text))
        writer.close()

    async with answering(tell) as url:
        with pytest.raises(SchemaError, match=named):
            await open_and_close(RedisStore(url))


async def test_flushed_scripts_are_sent_again(store: RedisStore, tell: Any) -> None:
    job, other = sample_job(), sample_job()
    async with store:
        for _ in range(2):
            tell("SCRIPT", "FLUSH")
            await store.insert([job, other])
            tell("SCRIPT", "FLUSH")
            assert len((await store.list(Selection(), limit=9)).jobs) == 2
            tell("SCRIPT", "FLUSH")
            assert ids(await store.take([LANE], now=NOW, until=NOW, limit=9)) == ids([job, other])
            tell("SCRIPT", "FLUSH")
            assert list(await store.replace([Change(begun(job), job.revision)])) == [True]
            tell("SCRIPT", "FLUSH")
            assert await store.count_before(other, until=LATER, most=9) == 0
            tell("SCRIPT", "FLUSH")
            await store.delete([job.id, other.id])


async def test_killed_connections_are_replaced(serve: Serve) -> None:
    server = serve()
    job = sample_job()
    async with RedisStore(server.url) as store:
        await store.insert([job])
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        assert list(await store.get([job.id])) == [job]
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        assert list(await store.insert([job])) == [job]
        assert list(await store.replace([Change(begun(job), job.revision)])) == [True]


async def test_interrupted_notices_raise_and_can_be_restarted(serve: Serve) -> None:
    server = serve()
    async with RedisStore(server.url) as store:
        for _ in range(2):
            changes = store.changes()
            assert list(await anext(changes)) == []
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            with anyio.fail_after(60), pytest.raises(StoreUnavailable):
                await anext(changes)


async def test_a_dead_subscription_is_detected(
    store: RedisStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncjobs.stores.redis.notices.SILENCE_SECONDS", 0.01)
    async with far_from(redis_url, store.namespace, timeout=0.3) as (proxy, far):
        changes = far.changes()
        await anext(changes)
        proxy.stall()
        with anyio.fail_after(60), pytest.raises(StoreUnavailable, match="subscription"):
            await anext(changes)


async def test_an_insert_with_a_lost_answer_is_repeated(store: RedisStore, redis_url: str) -> None:
    job = sample_job(idempotency_key="k")
    async with far_from(redis_url, store.namespace) as (proxy, far):
        proxy.lose(1, spare=SETTING_UP)
        assert list(await far.insert([job])) == [job]
        proxy.lose(1, spare=SETTING_UP)
        assert list(await far.get([job.id])) == [job]
        proxy.lose(1, spare=SETTING_UP)
        await far.delete([job.id])
        assert list(await far.get([job.id])) == [None]


async def test_a_change_with_a_lost_answer_raises_and_is_not_repeated(
    store: RedisStore, redis_url: str
) -> None:
    job, waiting = sample_job(), sample_job()
    async with far_from(redis_url, store.namespace) as (proxy, far):
        await far.insert([job, waiting])
        # The server must know the scripts: the lost answer must not be the request to send them.
        assert list(await far.replace([Change(begun(job), 7)])) == [False]
        assert list(await far.take([LANE], now=NOW - DAY, until=LATER, limit=1)) == []
        proxy.lose(1, spare=SETTING_UP)
        with pytest.raises(StoreUnavailable):
            await far.replace([Change(begun(job), job.revision)])
        proxy.lose(1, spare=SETTING_UP)
        with pytest.raises(StoreUnavailable):
            await far.take([LANE], now=NOW, until=LATER, limit=1)
        taken = waiting.model_copy(update={"due_at": LATER})
        assert list(await far.get([job.id, waiting.id])) == [begun(job), taken]


async def test_repetitions_are_bounded(store: RedisStore, redis_url: str) -> None:
    async with far_from(redis_url, store.namespace) as (proxy, far):
        proxy.lose(99, spare=SETTING_UP)
        with pytest.raises(StoreUnavailable):
            await far.get([sample_job().id])
        assert 99 - proxy.to_lose == 3


# full


async def test_a_full_server_makes_no_partial_write_and_jobs_can_still_end(serve: Serve) -> None:
    server = serve("--maxmemory-policy", "noeviction", "--appendonly", "yes")
    member = sample_job(batch=new_job_id(), queue="other")
    async with RedisStore(server.url) as store:
        await store.insert([member])
        server.ask("CONFIG", "SET", "maxmemory", used(server) + 2_000_000)
        stored, refused = await filled(store)
        assert await store.get([job.id for job in refused]) == [None] * len(refused)
        assert list(await store.get([job.id for job in stored])) == stored
        most = used(server) - 1_000_000  # half of the memory that the jobs use
        server.ask("CONFIG", "SET", "maxmemory", most)
        one, two, *_ = stored
        with pytest.raises(StoreUnavailable):
            await ended(store, two, b'"wide"')
        # Jobs can still be ended, which frees memory.
        assert list(await store.replace([Change(begun(one), one.revision)])) == [True]
        assert list(await store.replace([change_of(member, failed(member))])) == [True]
        taken = await store.take([LANE], now=NOW, until=LATER, limit=len(stored))
        assert len(taken) == len(stored) - 1
        assert len((await store.list(Selection(), limit=999)).jobs) == len(stored) + 1
        await open_and_close(RedisStore(server.url))
        await store.delete([job.id for job in stored])
        until_sync(lambda: used(server) < most)  # large values are freed in the background
        assert list(await store.insert(refused)) == refused


async def filled(store: RedisStore) -> tuple[list[Job], list[Job]]:
    """Insert until the server is full; return the accepted jobs, and the refused one."""
    stored: list[Job] = []
    while True:
        jobs = [sample_job(payload_json=b'"' + b"x" * 50_000 + b'"') for _ in range(5)]
        try:
            await store.insert(jobs)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            return stored, jobs
        stored += jobs


def used(server: Any) -> int:
    return int(server.ask("INFO", "memory")["used_memory"])


# another server


async def test_a_replica_allows_reads_and_refuses_writes(serve: Serve) -> None:
    first, second = serve(), serve()
    job, other = sample_job(), sample_job()
    async with RedisStore(second.url) as store:
        await store.insert([job])
        second.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
        second.ask("CONFIG", "SET", "replica-priority", "0")
        first.kill()
        second.ask("REPLICAOF", "127.0.0.1", first.port)
        with pytest.raises(StoreUnavailable) as caught:
            await store.insert([other])
        assert isinstance(caught.value.__cause__, ReadOnlyError)
        with pytest.raises(StoreUnavailable):
            await store.take([LANE], now=NOW, until=LATER, limit=1)
        assert list(await store.get([job.id])) == [job]
        assert ids((await store.list(Selection(), limit=9)).jobs) == [job.id]
        await open_and_close(RedisStore(second.url))
        with pytest.raises(StoreUnavailable):
            await open_and_close(RedisStore(second.url, namespace="new"))
        second.ask("REPLICAOF", "NO", "ONE")
        assert list(await store.insert([other])) == [other]


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"], ["evicts jobs when"]),
        (["--appendonly", "no"], ["appendonly no"]),
        (["--appendonly", "yes", "--maxmemory-policy", "volatile-lru"], ["evicts finished jobs"]),
        (["--appendonly", "yes", "--maxmemory-policy", "noeviction"], []),
        (["--appendonly", "yes", "--rename-command", "CONFIG", ""], []),
    ],
)
async def test_server_settings_that_lose_jobs_are_warned_about(
    serve: Serve, options: list[str], warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisStore(serve(*options).url) as store:
        advised = [one for one in await store.inspect() if one.advice and one.found != "unknown"]
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(said) == len(warned) == len(advised)
    assert all(text in one for text, one in zip(warned, said, strict=True))


RIGHTS = (
    *("~{asyncjobs}:*", "resetchannels", "&{asyncjobs}:changes", "+@read", "+@write"),
    *("+@scripting", "+@connection", "+@pubsub", "+time", "-@dangerous"),
)


async def test_a_user_with_the_documented_rights_can_use_everything(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    server.ask("ACL", "SETUSER", "app", "on", ">pw", *RIGHTS)
    job, other = sample_job(idempotency_key="k", user_id="ann"), sample_job()
    url = server.url.replace("//", "//app:pw@")
    async with RedisStore(url) as store, RedisStore(url) as second:
        changes = store.changes()
        await anext(changes)
        await second.insert([job, other])
        assert set(await anext(changes)) == {job.id, other.id}
        await changes.aclose()
        assert len(await store.take([LANE], now=NOW, until=LATER, limit=9)) == 2
        await ended(store, job, b"1")
        assert ids((await store.list(Selection("ann"), limit=9)).jobs) == [job.id]
        assert await store.count_before(other, until=LATER, most=9) == 0
        await store.now()
        await store.delete([job.id, other.id])
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []
    with pytest.raises(StoreUnavailable, match="password"):
        await open_and_close(RedisStore(url.replace("pw", "px")))


async def test_a_user_without_publish_rights_can_still_write(serve: Serve) -> None:
    server = serve()
    server.ask("ACL", "SETUSER", "app", "on", ">pw", *RIGHTS, "resetchannels", "-@pubsub")
    job = sample_job()
    async with RedisStore(server.url.replace("//", "//app:pw@")) as store:
        await store.insert([job])
        assert list(await store.get([job.id])) == [job]
        with pytest.raises(StoreUnavailable) as caught:
            await anext(store.changes())
    assert isinstance(caught.value.__cause__, NoPermissionError)


# cluster


@pytest.fixture(scope="module")
def cluster(serve_module: Serve) -> Any:
    server = serve_module("--cluster-enabled", "yes")
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    until_sync(lambda: is_well(server))
    return server


class TestRedisStoreInACluster(
    StoreConformance, ListingConformance, OutputStreamsConformance, TalliesConformance
):
    """A node of a cluster refuses scripts whose keys are not in one slot."""

    tested_elsewhere = RedisStore.powers

    @pytest.fixture
    def store(self, cluster: Any) -> RedisStore:
        cluster.ask("FLUSHALL")
        return RedisStore(cluster.url)


async def test_the_node_of_the_slot_is_found_also_after_a_move(serve: Serve) -> None:
    options = ["--cluster-enabled", "yes", "--appendonly", "yes", "--appendfsync", "always"]
    options += ["--cluster-require-full-coverage", "no"]
    near, far = serve(*options), serve(*options)
    slot = int(near.ask("CLUSTER", "KEYSLOT", "{asyncjobs}"))
    far.ask("CLUSTER", "ADDSLOTSRANGE", slot, 16383)
    near.ask("CLUSTER", "ADDSLOTSRANGE", 0, slot - 1)
    near.ask("CLUSTER", "MEET", "127.0.0.1", far.port)
    job, other = sample_job(), sample_job()
    until_sync(lambda: is_well(near) and is_well(far))
    async with RedisStore(near.url) as store:
        await store.insert([job])
        assert list(await store.get([job.id])) == [job]
        far.kill()
        with pytest.raises(StoreUnavailable):
            await store.replace([Change(begun(job), job.revision)])
        far.start()
        until_sync(lambda: is_well(far))
        assert list(await store.replace([Change(begun(job), job.revision)])) == [True]
        assert list(await store.insert([other])) == [other]
        far.kill()
        near.ask("CLUSTER", "SETSLOT", slot, "NODE", near.ask("CLUSTER", "MYID"))
        assert list(await store.insert([job])) == [job]
        assert list(await store.get([other.id])) == [None]


def is_well(node: Any) -> bool:
    return "cluster_state:ok" in str(node.ask("CLUSTER", "INFO"))


# servers that are not Redis


@asynccontextmanager
async def answering(answer: Any) -> AsyncGenerator[str]:
    """Serve connections by a coroutine function."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


# Connection set-up; it is answered even if answers are to be lost.
SETTING_UP = (b"CLIENT", b"PING")


@asynccontextmanager
async def far_from(
    url: str, namespace: str, *, timeout: float = 5.0
) -> AsyncGenerator[tuple[TcpProxy, RedisStore]]:
    """Open a store through a proxy that can lose answers."""
    with TcpProxy("127.0.0.1", int(url.rpartition(":")[2])) as proxy:
        async with RedisStore(proxy.through(url), namespace=namespace, timeout=timeout) as store:
            yield proxy, store
            proxy.lose(0)

"""Failover: a new primary at the same address, or one named by Sentinels."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Generator
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from redis.exceptions import ReadOnlyError

from asyncjobs import AsyncJobs, JobContext, Settings
from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.protocols import Change
from asyncjobs.stores import store_from_url
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import TcpProxy, sample_job
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, ended, ids
from tests.conftest import ask, binary
from tests.stores.opening import open_and_close
from tests.waiting import until_sync

pytestmark = pytest.mark.anyio

Serve = Callable[..., Any]

QUICK = Settings(
    lease=timedelta(seconds=1),
    redelivery=timedelta(seconds=1),
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.05),
    grace=timedelta(seconds=1),
)

# Otherwise a replica waits five seconds for further ones.
AT_ONCE = ("--repl-diskless-sync-delay", "0")


class Pair:
    """A primary, its replica, and one address that leads to the current primary."""

    def __init__(self, serve: Serve, address: TcpProxy, primary: Any) -> None:
        self.address = address
        self.primary = primary
        self.replica = serve(*AT_ONCE, "--replicaof", f"127.0.0.1 {primary.port}")
        self.url = address.through(primary.url)
        until_sync(lambda: self.replica.ask("INFO", "replication")["master_link_status"] == "up")

    def wait(self) -> None:
        """Wait until the replica has all writes."""
        told = self.primary.ask("INFO", "replication")["master_repl_offset"]
        until_sync(lambda: self.replica.ask("INFO", "replication")["master_repl_offset"] >= told)

    def promote(self) -> None:
        """Promote the replica, and let the address lead to it; old connections stay."""
        self.replica.ask("REPLICAOF", "NO", "ONE")
        self.address.server = ("127.0.0.1", self.replica.port)

    def demote(self) -> None:
        """Demote the former primary."""
        self.primary.ask("REPLICAOF", "127.0.0.1", self.replica.port)
        until_sync(lambda: self.primary.ask("INFO", "replication")["master_link_status"] == "up")


@pytest.fixture
def pair(serve: Serve) -> Generator[Pair]:
    primary = serve(*AT_ONCE)
    with TcpProxy("127.0.0.1", primary.port) as address:
        yield Pair(serve, address, primary)


# at the same address


async def test_a_replica_that_takes_over_from_a_dead_primary_is_used(pair: Pair) -> None:
    job, other = sample_job(), sample_job()
    async with RedisStore(pair.url) as store:
        await store.insert([job])
        pair.wait()
        pair.primary.kill()
        with pytest.raises(StoreUnavailable):
            await store.take([LANE], now=NOW, until=LATER, limit=1)
        pair.promote()
        assert list(await store.insert([job, other])) == [job, other]
        await ended(store, job, b"1")
        assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == [other.id]


async def test_no_call_fails_on_a_connection_to_a_former_primary(pair: Pair) -> None:
    job, other, third = sample_job(), sample_job(), sample_job()
    async with RedisStore(pair.url) as store:
        await store.insert([job, other])
        for call in (
            lambda: store.replace([Change(begun(job), job.revision)]),
            lambda: store.take([LANE], now=NOW, until=LATER, limit=9),
            lambda: store.insert([third]),
            lambda: store.delete([job.id]),
        ):
            pair.wait()
            pair.promote()
            pair.demote()
            await call()
            pair.primary, pair.replica = pair.replica, pair.primary
        taken = other.model_copy(update={"due_at": LATER})
        assert list(await store.get([job.id, other.id, third.id])) == [None, taken, third]


async def test_a_replica_that_is_not_promoted_raises_after_some_attempts(pair: Pair) -> None:
    job = sample_job()
    async with RedisStore(pair.url) as store:
        pair.address.server = ("127.0.0.1", pair.replica.port)
        pair.address.cut()
        with pytest.raises(StoreUnavailable) as caught:
            await store.insert([job])
        assert isinstance(caught.value.__cause__, ReadOnlyError)
        pair.promote()
        assert list(await store.insert([job])) == [job]


async def test_notices_from_a_former_primary_end_and_can_be_restarted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncjobs.stores.redis.notices.SILENCE_SECONDS", 0.01)
    job = sample_job()
    async with RedisStore(pair.url) as store, aclosing(store.changes()) as changes:
        await anext(changes)
        pair.promote()
        pair.primary.ask("REPLICAOF", "127.0.0.1", 1)  # which does not learn of the promotion
        await store.insert([job])
        with anyio.fail_after(60), pytest.raises(StoreUnavailable, match="primary now"):
            await anext(changes)
        async with RedisStore(pair.url) as other, aclosing(store.changes()) as anew:
            await anext(anew)
            await other.delete([job.id])
            assert list(await anext(anew)) == [job.id]


async def test_a_queue_completes_its_jobs_on_the_new_primary(pair: Pair) -> None:
    jobs = AsyncJobs(RedisStore(pair.url, timeout=1), settings=QUICK)
    jobs.handler("double")(double)
    async with jobs:
        with anyio.fail_after(60):
            accepted = [await jobs.enqueue("double", number) for number in range(50)]
            pair.wait()
            pair.promote()
            pair.demote()
            accepted += [await jobs.enqueue("double", number) for number in range(50, 60)]
            done = [await jobs.wait(job.id) for job in accepted]
    assert [job.result for job in done] == [2 * number for number in range(60)]


async def double(number: int, _job: JobContext) -> int:
    return 2 * number


# Sentinels


@pytest.fixture
def sentinel(pair: Pair, tmp_path: Path) -> Generator[str]:
    """Start a Sentinel that watches the pair, and return its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"bind 127.0.0.1\nport {port}\ndir {tmp_path}\nlogfile {tmp_path}/sentinel.log\n"
        f"requirepass known\nsentinel monitor jobs 127.0.0.1 {pair.primary.port} 1\n"
    )
    with subprocess.Popen([binary(), settings, "--sentinel"]) as process:
        try:
            until_sync(lambda: watches(f"redis://:known@127.0.0.1:{port}"))
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def watches(url: str) -> bool:
    """Return whether a Sentinel has heard from the replica itself, and so could choose it."""
    with suppress(redis.ConnectionError):
        known = [
            dict(zip(found[::2], found[1::2], strict=True))
            for found in ask(url, "SENTINEL", "REPLICAS", "jobs")
        ]
        return any(one["flags"] == "slave" and one["master-host"] != "?" for one in known)
    return False


def primary_by(url: str) -> str:
    """Ask a Sentinel for the primary's port; it names the new one when the failover is done."""
    _, port = ask(url, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "jobs")
    return str(port)


async def test_the_primary_named_by_sentinels_is_used_also_after_a_failover(
    pair: Pair, sentinel: str
) -> None:
    url = f"redis://127.0.0.1:1,{sentinel}/0?sentinel=jobs&sentinel_password=known&namespace=shop"
    watcher = f"redis://:known@{sentinel}"
    job, other = sample_job(), sample_job()
    async with store_from_url(url) as store:
        await store.insert([job])
        pair.wait()
        pair.primary.kill()
        ask(watcher, "SENTINEL", "FAILOVER", "jobs")
        until_sync(lambda: primary_by(watcher) == str(pair.replica.port))
        assert list(await store.insert([other])) == [other]
        await ended(store, job, b"1")
    assert pair.replica.ask("GET", "{shop}:sequence") == "2"


@pytest.mark.parametrize("options", ["sentinel=other&sentinel_password=known", "sentinel=jobs"])
async def test_an_unknown_primary_raises_an_error_without_passwords(
    sentinel: str, options: str
) -> None:
    with pytest.raises(StoreUnavailable, match="no reachable Sentinel reports") as caught:
        await open_and_close(RedisStore(f"redis://:secret@{sentinel}?{options}"))
    assert not any(word in str(caught.value) for word in ("secret", "=known"))


@pytest.mark.parametrize("options", ["sentinel_nonsense=1", "nonsense=1", "ssl_nonsense=1"])
async def test_options_for_sentinels_that_the_driver_does_not_know_are_named(options: str) -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        await open_and_close(RedisStore(f"rediss://127.0.0.1:1?sentinel=jobs&{options}"))


async def test_a_sentinel_port_must_be_a_number() -> None:
    with pytest.raises(ConfigurationError, match="cannot be parsed"):
        await open_and_close(RedisStore("redis://:secret@127.0.0.1:x?sentinel=jobs"))

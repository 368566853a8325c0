"""Another server takes over: at the same address, or where Sentinels say."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from redis.exceptions import ReadOnlyError

from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import TcpProxy, sample_job
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, ended, ids

pytestmark = pytest.mark.anyio

Serve = Callable[..., Any]

# Otherwise a replica waits for five seconds, in case another one comes.
AT_ONCE = ("--repl-diskless-sync-delay", "0")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Pair:
    """A primary, its replica, and the address of whichever is in charge."""

    def __init__(self, serve: Serve, address: TcpProxy, primary: Any) -> None:
        self.address = address
        self.primary = primary
        self.replica = serve(*AT_ONCE, "--replicaof", f"127.0.0.1 {primary.port}")
        self.url = address.through(primary.url)
        until(lambda: self.replica.ask("INFO", "replication")["master_link_status"] == "up")

    def wait(self) -> None:
        """Wait until the replica has all that was written."""
        told = self.primary.ask("INFO", "replication")["master_repl_offset"]
        until(lambda: self.replica.ask("INFO", "replication")["master_repl_offset"] >= told)

    def promote(self) -> None:
        """Let the replica take over, and the address lead to it; old connections stay."""
        self.replica.ask("REPLICAOF", "NO", "ONE")
        self.address.server = ("127.0.0.1", self.replica.port)

    def demote(self) -> None:
        """Let the former primary know."""
        self.primary.ask("REPLICAOF", "127.0.0.1", self.replica.port)
        until(lambda: self.primary.ask("INFO", "replication")["master_link_status"] == "up")


@pytest.fixture
def pair(serve: Serve) -> Generator[Pair]:
    primary = serve(*AT_ONCE)
    with TcpProxy("127.0.0.1", primary.port) as address:
        yield Pair(serve, address, primary)


# at the same address


async def test_a_replica_that_takes_over_from_a_dead_primary_is_found(pair: Pair) -> None:
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


async def test_no_call_fails_because_its_connection_leads_to_a_former_primary(pair: Pair) -> None:
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


async def test_a_replica_that_nobody_promotes_is_told_after_some_attempts(pair: Pair) -> None:
    job = sample_job()
    async with RedisStore(pair.url) as store:
        pair.address.server = ("127.0.0.1", pair.replica.port)
        pair.address.cut()
        with pytest.raises(StoreUnavailable) as caught:
            await store.insert([job])
        assert isinstance(caught.value.__cause__, ReadOnlyError)
        pair.promote()
        assert list(await store.insert([job])) == [job]


async def test_who_is_told_of_changes_by_a_former_primary_asks_the_new_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncjobs.stores.redis_changes._SILENCE_SECONDS", 0.01)
    job = sample_job()
    async with RedisStore(pair.url) as store, aclosing(store.changes()) as changes:
        await anext(changes)
        pair.promote()
        pair.primary.ask("REPLICAOF", "127.0.0.1", 1)  # which tells it nothing
        await store.insert([job])
        with anyio.fail_after(60), pytest.raises(StoreUnavailable, match="in charge"):
            await anext(changes)
        async with RedisStore(pair.url) as other, aclosing(store.changes()) as anew:
            await anext(anew)
            await other.delete([job.id])
            assert list(await anext(anew)) == [job.id]


def until(condition: Callable[[], bool]) -> None:
    """Ask until it is so; pytest's own limit is the patience of who runs it."""
    while not condition():
        pass

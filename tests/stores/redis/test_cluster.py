"""A cluster that moves the slot of the jobs to another node, by key or as a whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from redis.exceptions import ResponseError

from asyncjobs.core import lifecycle
from asyncjobs.core.job import MAINTENANCE_LANE, Job, JobStatus
from asyncjobs.core.output import Appended
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.output_conformance import contents, items, text
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, ended, ids
from tests.stores.redis.keys import key_of
from tests.waiting import until_sync

pytestmark = pytest.mark.anyio

Serve = Callable[..., Any]


class Cluster:
    """Three nodes; the first one has the slot of the jobs."""

    def __init__(self, serve: Serve) -> None:
        self.nodes = [serve("--cluster-enabled", "yes") for _ in range(3)]
        first, second, third = self.nodes
        self.slot = int(first.ask("CLUSTER", "KEYSLOT", "{asyncjobs}"))
        first.ask("CLUSTER", "ADDSLOTSRANGE", 0, self.slot)
        second.ask("CLUSTER", "ADDSLOTSRANGE", self.slot + 1, self.slot + 1)
        third.ask("CLUSTER", "ADDSLOTSRANGE", self.slot + 2, 16383)
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in (second, third):
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        until_sync(lambda: all(is_well(node) for node in self.nodes))

    def begin(self) -> None:
        """Start moving the slot from the first node to the second."""
        first, second, _ = self.nodes
        second.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", first.ask("CLUSTER", "MYID"))
        first.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", second.ask("CLUSTER", "MYID"))

    def carry(self, *keys: str) -> None:
        """Move these keys."""
        first, second, _ = self.nodes
        if keys:
            first.ask("MIGRATE", "127.0.0.1", second.port, "", 0, 5000, "KEYS", *keys)

    def end(self) -> None:
        """Move the remaining keys, and assign the slot to the second node."""
        first, second, _ = self.nodes
        self.carry(*first.ask("CLUSTER", "GETKEYSINSLOT", self.slot, 1000))
        owner = second.ask("CLUSTER", "MYID")
        for node in (second, first):
            node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", owner)


@pytest.fixture
def cluster(serve: Serve) -> Cluster:
    return Cluster(serve)


# key by key

PARTS = ("completed:export", "owner:ann", "due:", "due:default", "held", "all")
FAR = NOW + timedelta(days=3)


async def test_a_slot_that_moves_by_key_keeps_every_job_complete(cluster: Cluster) -> None:
    waiting, running, done = ([sample_job(user_id="ann") for _ in PARTS] for _ in "123")
    async with RedisStore(cluster.nodes[0].url) as store:
        await store.insert([*waiting, *running, *done])
        started = [await begin(store, job) for job in running]
        finished = [await ended(store, job, b"1") for job in done]
        cluster.begin()
        for place, part in enumerate(PARTS):
            cluster.carry(f"{{asyncjobs}}:{part}")
            with suppress(StoreUnavailable):
                await begin(store, waiting[place])
            with suppress(StoreUnavailable):
                await finish(store, started[place])
            with suppress(StoreUnavailable):
                await store.delete([finished[place].id])
        cluster.end()
        jobs = await store.get([job.id for job in (*waiting, *running, *done)])
        left = {job.id: job for job in jobs if job is not None}
        taken = await store.take([LANE, MAINTENANCE_LANE], now=FAR, until=FAR, limit=99)
        assert {job.id: (job.status, job.lane) for job in taken} == {
            job.id: (job.status, job.lane) for job in left.values()
        }
        assert len(taken) == len(left)
        await store.delete(ids(taken))
        await store.list(Selection(None, "export", JobStatus.COMPLETED), limit=99)
    assert sorted(cluster.nodes[1].ask("KEYS", "*")) == [
        "{asyncjobs}:schema",
        "{asyncjobs}:sequence",
    ]


async def test_calls_that_a_moving_slot_cannot_serve_raise_without_effect(cluster: Cluster) -> None:
    node, job, new = cluster.nodes[0], sample_job(), sample_job()
    async with RedisStore(node.url) as store:
        await store.insert([job])
        cluster.begin()
        assert list(await store.get([job.id])) == [job]
        await refused(node, store.insert([new]))
        cluster.carry(key_of(store, f"job:{job.id}"))
        await refused(node, store.get([job.id]))
        await refused(node, store.replace([Change(begun(job), job.revision)]))
        await refused(node, store.take([LANE], now=NOW, until=LATER, limit=1))
        cluster.end()
        assert list(await store.get([job.id, new.id])) == [job, None]
        assert list(await store.insert([new])) == [new]
        assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == ids([job, new])


async def test_a_moving_slot_leaves_no_part_of_an_append_or_of_an_end(cluster: Cluster) -> None:
    async with RedisStore(cluster.nodes[0].url) as store:
        [job] = await store.insert([begun(sample_job())])
        await store.append([text(job, b"one"), items(job, 1, b"1")])
        output = key_of(store, f"output:{job.id}")
        cluster.begin()
        for key in (f"{output}:log", f"{output}:items", output):
            cluster.carry(key)
            with pytest.raises(StoreUnavailable):
                await store.append([text(job, b"two", position=3)])
            with pytest.raises(StoreUnavailable):
                await finish(store, job)
        cluster.end()
        assert list(await store.get([job.id])) == [job]
        assert await contents(store, job) == b"one"
        assert list(await store.append([text(job, b"two", position=3)])) == [Appended(6)]
        await finish(store, job)
        assert await contents(store, job) == b"onetwo"
        ends = {
            cluster.nodes[1].ask("PEXPIRETIME", key)
            for key in (key_of(store, f"job:{job.id}"), output, f"{output}:log", f"{output}:items")
        }
    assert len(ends) == 1
    assert -1 not in ends


async def begin(store: RedisStore, job: Job) -> Job:
    started = begun(job)
    assert list(await store.replace([Change(started, job.revision)])) == [True]
    return started


async def finish(store: RedisStore, started: Job) -> None:
    done = lifecycle.complete(started, NOW, token="t", result=b"1")
    assert list(await store.replace([Change(done, started.revision)])) == [True]


async def refused(node: Any, call: Awaitable[object]) -> None:
    """Check that a call is refused before it takes effect, and tried three times."""
    node.ask("CONFIG", "RESETSTAT")
    with pytest.raises(StoreUnavailable) as caught:
        await call
    assert isinstance(caught.value.__cause__, ResponseError)
    commands = node.ask("INFO", "commandstats")
    counted = [commands.get(f"cmdstat_{name}", {}) for name in ("evalsha", "hmget")]
    assert [one["rejected_calls"] for one in counted if one] == [3]
    assert all(one["calls"] == 0 for one in counted if one)


# as a whole


async def test_a_slot_that_moves_as_a_whole_is_followed(cluster: Cluster) -> None:
    first, second, _ = cluster.nodes
    job, other = sample_job(), sample_job()
    async with RedisStore(first.url) as store:
        await store.insert([job])
        where = ("SLOTSRANGE", cluster.slot, cluster.slot, "NODE", second.ask("CLUSTER", "MYID"))
        first.ask("CLUSTER", "MIGRATESLOTS", *where)
        until_sync(lambda: "success" in str(first.ask("CLUSTER", "GETSLOTMIGRATIONS")))
        assert list(await store.replace([Change(begun(job), job.revision)])) == [True]
        assert list(await store.insert([other])) == [other]
        assert (
            second.ask("EXISTS", key_of(store, f"job:{job.id}"), key_of(store, f"job:{other.id}"))
            == 2
        )


def is_well(node: Any) -> bool:
    return "cluster_state:ok" in str(node.ask("CLUSTER", "INFO"))

"""The keys of output in Redis, which expire and go with their job; appends that get no answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobError
from asyncjobs.core.output import Append, Appended, Refusal
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.output_conformance import contents, items, text
from asyncjobs.testing.samples import LATER, NOW, begun, ids
from tests.stores.redis.keys import key_of
from tests.stores.redis.test_faults import SETTING_UP, Serve, far_from, used

pytestmark = pytest.mark.anyio


async def with_output(store: RedisStore) -> tuple[Job, list[str]]:
    """Store a job with two streams; return it, and the keys of its output."""
    job = begun(sample_job())
    await store.insert([job])
    await store.append([text(job, b"x", stream="a:b"), items(job, 1, b"1")])
    output = key_of(store, f"output:{job.id}")
    return job, [output, f"{output}:a:b", f"{output}:items"]


def done(job: Job) -> Job:
    return lifecycle.complete(job, LATER, token="t", result=b"1")


async def test_output_expires_with_its_job(store: RedisStore, tell: Any) -> None:
    async with store:
        job, keys = await with_output(store)
        keys.append(key_of(store, f"job:{job.id}"))
        assert {tell("PEXPIRETIME", key) for key in keys} == {-1}
        await store.replace([Change(done(job), job.revision)])
        [end] = {tell("PEXPIRETIME", key) for key in keys}
        assert end > 0
        # A state that is not terminal takes the expiry away.
        again = job.changed(revision=done(job).revision + 1)
        await store.replace([Change(again, done(job).revision)])
        assert {tell("PEXPIRETIME", key) for key in keys} == {-1}


async def test_an_epoch_that_begins_after_the_end_expires_with_the_job(
    store: RedisStore, tell: Any
) -> None:
    job = begun(sample_job())
    async with store:
        await store.insert([job])
        await store.replace([Change(done(job), job.revision)])
        await store.begin_epoch(job.id, 2)
    names = (f"job:{job.id}", f"output:{job.id}")
    [end] = {tell("PEXPIRETIME", key_of(store, name)) for name in names}
    assert end > 0


async def test_deleting_a_job_deletes_the_keys_of_its_output(store: RedisStore, tell: Any) -> None:
    async with store:
        (one, keys), (two, others) = await with_output(store), await with_output(store)
        await store.delete(ids([one]))
        assert tell("EXISTS", *keys) == 0
        assert tell("EXISTS", *others) == len(others)
        assert await contents(store, two, "a:b") == b"x"


async def test_an_append_with_a_lost_answer_is_repeated_if_it_has_a_position(
    store: RedisStore, redis_url: str
) -> None:
    job = begun(sample_job())
    async with far_from(redis_url, store.namespace) as (proxy, far):
        await far.insert([job])
        proxy.lose(1, spare=SETTING_UP)
        assert list(await far.append([text(job, b"ab", position=0)])) == [Appended(2)]
        proxy.lose(1, spare=SETTING_UP)
        with pytest.raises(StoreUnavailable):
            await far.append([text(job, b"cd", position=2), text(job, b"ef")])
        proxy.lose(0)
        assert await contents(far, job) == b"abcdef"
        again = [text(job, b"cd", position=2), text(job, b"ef", position=4)]
        assert list(await far.append(again)) == [Appended(4), Appended(6)]
        assert await contents(far, job) == b"abcdef"


async def test_a_full_server_refuses_output_and_lets_the_job_end(serve: Serve) -> None:
    server = serve("--maxmemory-policy", "noeviction", "--appendonly", "yes")
    job = begun(sample_job())
    async with RedisStore(server.url) as store:
        await store.insert([job])
        server.ask("CONFIG", "SET", "maxmemory", used(server) + 4_000_000)
        stored = await fill(store, text(job, b"x" * 500_000))
        assert await contents(store, job) == b"x" * stored
        await store.begin_epoch(job.id, 2)
        error = JobError(code="full", message="The output is too large.")
        ended = lifecycle.fail(job, NOW, token="t", error=error)
        assert list(await store.replace([Change(ended, job.revision)])) == [True]
        assert await contents(store, job) == b"x" * stored
        assert list(await store.delete([job.id])) == [True]
        other = begun(sample_job())
        await store.insert([other])
        assert list(await store.append([text(other, b"y")])) == [Appended(1)]
        late = replace(text(other, b"z"), job_id=job.id)
        assert list(await store.append([late])) == [Appended(refusal=Refusal.GONE)]


async def fill(store: RedisStore, one: Append) -> int:
    """Append until the server is full; return the end of what is stored."""
    stored = 0
    while True:
        try:
            [answer] = await store.append([one])
        except StoreUnavailable:
            return stored
        stored = answer.end

"""Several processes on each store: which one calls, and when a call is repeated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from standardwebhooks import Webhook

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, Settings
from asyncjobs.core.job import JobId
from asyncjobs.core.lifecycle import owes_callback
from asyncjobs.testing import ManualClock
from asyncjobs.webhooks import WebhookOptions, Webhooks
from tests.everywhere import KINDS, SERVERS, variant
from tests.waiting import until
from tests.webhooks.conftest import NAME, SECRET, Answering, answer, receiving

# Processes do not share memory.
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "store_kind",
        [variant((kind,), thorough=kind in SERVERS) for kind in KINDS[1:]],
        indirect=True,
    ),
]

QUICK = Settings(sweep_interval=timedelta(seconds=0.05), poll_interval=timedelta(seconds=0.05))
KILLED = Path(__file__).with_name("killed.py")
JOBS = 12


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def sender(host: str = NAME) -> Webhooks:
    options = WebhookOptions(
        loopback=True, resolve=Answering(["127.0.0.1"]), schedule=(timedelta(0),) * 3
    )
    return Webhooks({host: SECRET}, options=options)


@pytest.fixture
def process(new_store: Callable[[], Any]) -> Callable[[], AsyncJobs]:
    """Make queues that share a store, each with its own connection."""

    def build() -> AsyncJobs:
        jobs = AsyncJobs(new_store(), settings=QUICK, callbacks=sender())

        @jobs.handler("double")
        async def double(number: int, _job: JobContext) -> int:
            return 2 * number

        return jobs

    return build


async def test_processes_on_one_store_call_once_and_repeat_after_a_failure(
    process: Callable[[], AsyncJobs],
) -> None:
    async with receiving(answer(500), answer(204)) as receiver, AsyncExitStack() as stack:
        queues = [await stack.enter_async_context(process()) for _ in range(3)]
        url = f"http://{NAME}:{receiver.port}/"
        options = EnqueueOptions(callback_url=url)
        made = [
            (await queues[number % 3].enqueue("double", number, options=options)).id
            for number in range(JOBS)
        ]

        async def all_sent() -> bool:
            return not any([await owed(queues[0], job_id) for job_id in made])

        await until(all_sent)
        callbacks = [(await queues[0].find(job_id)).callback for job_id in made]
    assert sorted(callback.calls for callback in callbacks if callback) == [1] * (JOBS - 1) + [2]
    ids = [post.headers["webhook-id"] for post in receiver.posts]
    assert len(ids) == JOBS + 1
    assert set(ids) == {f"{job_id}_completed" for job_id in made}


async def owed(jobs: AsyncJobs, job_id: JobId) -> bool:
    job = await jobs.find(job_id)
    return owes_callback(job) or not job.status.terminal


async def test_another_process_repeats_the_call_of_a_killed_process(
    new_url: Callable[[], str],
) -> None:
    url = new_url()
    async with receiving(b"") as receiver:
        target = f"http://localhost:{receiver.port}/"
        command = [sys.executable, str(KILLED), url, SECRET, target]
        async with await anyio.open_process(command, stdout=None, stderr=None) as killed:
            await until(lambda: len(receiver.posts) == 1)
            killed.kill()
        receiver.answers = [answer(204)]
        # Within the time limit of the call that was under way.
        later = ManualClock(datetime.now(UTC) + WebhookOptions().timeout)
        async with AsyncJobs(url, settings=QUICK, callbacks=sender("localhost"), clock=later):
            await until(lambda: len(receiver.posts) == 2)
    first, second = receiver.posts
    assert (first.headers["webhook-id"], first.body) == (
        second.headers["webhook-id"],
        second.body,
    )
    for post in receiver.posts:
        Webhook(SECRET).verify(post.body, post.headers)

"""A process that makes a job, runs it and calls its receiver; the test kills it meanwhile."""

from __future__ import annotations

import sys
from datetime import timedelta

import anyio

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, Settings
from asyncjobs.webhooks import WebhookOptions, Webhooks


async def main() -> None:
    store, secret, url = sys.argv[1:]
    sender = Webhooks({"localhost": secret}, options=WebhookOptions(loopback=True))
    settings = Settings(sweep_interval=timedelta(seconds=0.05))
    jobs = AsyncJobs(store, callbacks=sender, settings=settings)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        await jobs.enqueue(double, 4, options=EnqueueOptions(callback_url=url))
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main)

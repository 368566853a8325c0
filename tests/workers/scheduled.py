"""An application with schedules that fire every second or two."""

from __future__ import annotations

import os
from datetime import timedelta

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, Settings

jobs = AsyncJobs(
    os.environ["JOBS"],
    dispatcher="worker",
    settings=Settings(
        poll_interval=timedelta(seconds=0.1),
        sweep_interval=timedelta(seconds=0.2),
        redelivery=timedelta(seconds=1),
        lease=timedelta(seconds=3),
        grace=timedelta(seconds=float(os.environ["GRACE"])),
    ),
)


@jobs.handler("tick")
async def tick(job: JobContext) -> str:
    return f"{os.getpid()} {job.scheduled_at}"


for seconds, cron in ((1, None), (2, None), (None, "* * * * * *")):
    name = f"every-{seconds}" if cron is None else "cron"
    jobs.schedule(
        name, tick, every=seconds, cron=cron, missed="once", options=EnqueueOptions(tags=[name])
    )

"""Celery with Redis, and asyncjobs on it; one worker with `--pool solo`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

from celery import Celery

from asyncjobs.dispatchers.celery import CeleryDispatcher
from benchmarks.sides.on_engines import PLACE, queue_on
from benchmarks.sides.ours import OnQueue
from benchmarks.sides.side import PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

app = Celery("benchmark", broker=PLACE.redis, backend=PLACE.redis)
app.conf.update(worker_prefetch_multiplier=100, broker_connection_retry_on_startup=True)
dispatcher = CeleryDispatcher(app)
jobs = queue_on(dispatcher)
dispatcher.register_task(jobs)


@app.task(name="own")
def own(_payload: dict[str, int]) -> int:
    stamp(time.monotonic())
    return RESULT


class _Worker(Side):
    def worker(self) -> Sequence[str]:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR")
        return (
            *("-m", "celery", "-A", "benchmarks.sides.on_celery:app", "worker", "-P", "solo"),
            *quiet,
        )


class CeleryTasks(_Worker):
    blocking = True
    drained = 2000

    def submit(self) -> str:
        return str(own.delay(PAYLOAD).id)

    def ended(self, ticket: str) -> bool:
        backend: Any = cast("Any", app).backend
        found = backend.get_task_meta(ticket, cache=False)
        return bool(found["status"] == "SUCCESS" and found["result"] == RESULT)


class OnCelery(_Worker, OnQueue):
    jobs = jobs
    drained = CeleryTasks.drained

"""RQ, and asyncjobs on it; one `SimpleWorker`, which does not fork."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

from redis import Redis
from rq import Queue
from rq.job import Job

from asyncjobs.dispatchers.rq import RQDispatcher
from benchmarks.sides.on_engines import PLACE, queue_on
from benchmarks.sides.ours import OnQueue
from benchmarks.sides.side import PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

MODULE = "benchmarks.sides.on_rq"

# redis-py and RQ type these as dicts of any value.
connection: Any = cast("Any", Redis).from_url(PLACE.redis)
queue: Any = Queue(connection=connection)
dispatcher = RQDispatcher(connection, f"{MODULE}.run_job")
jobs = queue_on(dispatcher)
run_job = dispatcher.register_task(jobs)


def own(_payload: dict[str, int]) -> int:
    stamp(time.monotonic())
    return RESULT


class _Worker(Side):
    drained = 2000

    def worker(self) -> Sequence[str]:
        kind = ("--worker-class", "rq.worker.SimpleWorker")
        return ("-m", "rq.cli", "worker", *kind, "--url", PLACE.redis, "--quiet")


class RQTasks(_Worker):
    blocking = True

    def submit(self) -> str:
        return str(queue.enqueue(f"{MODULE}.own", PAYLOAD, result_ttl=600).id)

    def submit_many(self, count: int) -> Sequence[str]:
        one = cast("Any", Queue).prepare_data(f"{MODULE}.own", (PAYLOAD,), result_ttl=600)
        again = (one._replace(job_id=None) for _ in range(count))
        return [str(made.id) for made in queue.enqueue_many(list(again))]

    def ended(self, ticket: str) -> bool:
        job: Any = cast("Any", Job).fetch(ticket, connection=connection)
        finished = job.get_status(refresh=False) == "finished"
        return bool(finished and job.return_value() == RESULT)


class OnRQ(_Worker, OnQueue):
    jobs = jobs

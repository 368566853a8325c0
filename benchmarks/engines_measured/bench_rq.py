"""RQ: a task of its own with its result kept, and a job of ours."""

from __future__ import annotations

from typing import Any, cast

from redis import Redis
from rq import Queue

from asyncjobs.dispatchers.rq import RQDispatcher
from benchmarks.engines_measured.common import BROKER, Bench, queue_on

# redis-py and RQ type these by dicts of anything.
connection: Any = cast("Any", Redis).from_url(BROKER)
queue: Any = Queue(connection=connection)
dispatcher = RQDispatcher(connection, "benchmarks.engines_measured.bench_rq.run_job")
jobs = queue_on(dispatcher)
run_job = dispatcher.register_task(jobs)


def own_rq(number: int) -> int:
    return number


def run_own(count: int) -> list[object]:
    asked = [
        queue.enqueue("benchmarks.engines_measured.bench_rq.own_rq", number, result_ttl=600)
        for number in range(count)
    ]
    found: list[object] = []
    for one in asked:
        while (result := one.latest_result(timeout=60)) is None:
            pass
        found.append(result.return_value)
    return found


kind = ("rq.cli", "worker", "--worker-class", "rq.worker.SimpleWorker")
bench = Bench(jobs, (*kind, "--url", BROKER, "--quiet"), run_own)

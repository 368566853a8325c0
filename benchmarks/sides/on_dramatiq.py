"""dramatiq with Redis and its results, and asyncjobs on it; one process with eight threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import RedisBackend

from asyncjobs.dispatchers.dramatiq import DramatiqDispatcher
from benchmarks.sides.on_engines import PLACE, queue_on
from benchmarks.sides.ours import OnQueue
from benchmarks.sides.side import PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

# dramatiq types neither.
broker: Any = cast("Any", RedisBroker)(url=PLACE.redis)
backend: Any = RedisBackend(url=PLACE.redis)
broker.add_middleware(cast("Any", Results)(backend=backend))
dramatiq.set_broker(broker)
dispatcher = DramatiqDispatcher(broker)
jobs = queue_on(dispatcher)
dispatcher.register_task(jobs)


@dramatiq.actor(store_results=True)
def own(_payload: dict[str, int]) -> int:
    stamp(time.monotonic())
    return RESULT


class _Worker(Side):
    def worker(self) -> Sequence[str]:
        module = "benchmarks.sides.on_dramatiq"
        return ("-m", "dramatiq", module, "--processes", "1", "--threads", "8", "--skip-logging")


class DramatiqTasks(_Worker):
    blocking = True

    def submit(self) -> dramatiq.Message[int]:
        return own.send(PAYLOAD)

    def ended(self, ticket: dramatiq.Message[int]) -> bool:
        try:
            return ticket.get_result(backend=backend) == RESULT
        except ResultMissing:
            return False


class OnDramatiq(_Worker, OnQueue):
    jobs = jobs

"""dramatiq: a task of its own with its result kept, and a job of ours."""

from __future__ import annotations

from typing import Any, cast

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from asyncjobs.dispatchers.dramatiq import DramatiqDispatcher
from benchmarks.engines_measured.common import BROKER, SLOTS, Bench, queue_on

# dramatiq types neither.
broker: Any = cast("Any", RedisBroker)(url=BROKER)
broker.add_middleware(cast("Any", Results)(backend=RedisBackend(url=BROKER)))
dramatiq.set_broker(broker)
dispatcher = DramatiqDispatcher(broker)
jobs = queue_on(dispatcher)
dispatcher.register_task(jobs)


@dramatiq.actor(store_results=True)
def own_actor(number: int) -> int:
    return number


def run_own(count: int) -> list[int]:
    asked = [own_actor.send(number) for number in range(count)]
    return [one.get_result(block=True, timeout=120_000) for one in asked]


bench = Bench(
    jobs,
    (
        "dramatiq",
        "benchmarks.engines_measured.bench_dramatiq",
        "--processes",
        "1",
        "--threads",
        SLOTS,
    ),
    run_own,
)

"""The dramatiq app of the tests' workers, with defaults that would harm jobs."""

from __future__ import annotations

import os
from typing import Any, cast

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Middleware, Retries, ShutdownNotifications, TimeLimit
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.dramatiq import DramatiqDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register
from tests.engines.apps.dramatiq_options import OPTIONS
from tests.engines.apps.handlers import register_more

url = os.environ["BROKER"]
hasty: list[Middleware] = [
    AgeLimit(max_age=1),
    TimeLimit(time_limit=200, interval=20),
    ShutdownNotifications(notify_shutdown=True),
    Retries(max_retries=3, min_backoff=1),
    cast("Any", Results)(backend=RedisBackend(url=url), store_results=True),
]
broker = cast("Any", RedisBroker)(url=url, middleware=hasty)
dramatiq.set_broker(broker)
dispatcher = DramatiqDispatcher(broker, options=OPTIONS)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
dispatcher.register_task(jobs)
register(jobs)
register_more(jobs)


@dramatiq.actor(store_results=True, max_age=60_000)
def plain() -> str:
    return "kept"

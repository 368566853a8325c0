"""Celery: a task of its own with its result kept, and a job of ours."""

from __future__ import annotations

from celery import Celery

from asyncjobs.dispatchers.celery import CeleryDispatcher
from benchmarks.engines_measured.common import BROKER, SLOTS, Bench, queue_on

app = Celery("bench", broker=BROKER, backend=BROKER)
dispatcher = CeleryDispatcher(app)
jobs = queue_on(dispatcher)
dispatcher.register_task(jobs)


@app.task(name="own")
def own(number: int) -> int:
    return number


def run_own(count: int) -> list[int]:
    asked = [own.delay(number) for number in range(count)]
    return [one.get(timeout=120) for one in asked]


command = (
    "celery",
    "-A",
    "benchmarks.engines_measured.bench_celery:app",
    "worker",
    "--pool",
    "prefork",
)
bench = Bench(jobs, (*command, "--concurrency", SLOTS, "--loglevel", "WARNING"), run_own)

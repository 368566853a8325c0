"""Use the installed package as its users do: `python smoke.py [extra ...]`.

It runs jobs in memory and on SQLite, then uses each extra that is named. `jobs.db` stays behind in
the current folder.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import anyio

from asyncjobs import AsyncJobs, JobContext

MEMORY = "memory://"


def core() -> None:
    for url in (MEMORY, "sqlite:///jobs.db"):
        anyio.run(run_one_job, url)
    if find_spec("httpx2") is None:
        refuse_to_make_a_client()


def refuse_to_make_a_client() -> None:
    from asyncjobs.client import JobsClient
    from asyncjobs.errors import ConfigurationError

    refusal = ""
    try:
        JobsClient()
    except ConfigurationError as error:
        refusal = str(error)
    assert "pip install 'asyncjobs-http[client]'" in refusal, refusal


async def run_one_job(url: str) -> None:
    jobs = AsyncJobs(url)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        handle = await jobs.enqueue(double, 21)
        result = await handle.result()
        assert result == 42, result


def starlette() -> None:
    from starlette.applications import Starlette

    from asyncjobs.adapters.starlette import mount

    mount(Starlette(), AsyncJobs(MEMORY))


def fastapi() -> None:
    from fastapi import FastAPI

    from asyncjobs.adapters.fastapi import mount

    app = FastAPI()
    mount(app, AsyncJobs(MEMORY))
    app.openapi()


def flask() -> None:
    from flask import Flask

    from asyncjobs.adapters.flask import mount

    mount(Flask("app"), AsyncJobs(MEMORY))


def redis() -> None:
    import asyncjobs.stores.redis  # noqa: F401

    AsyncJobs("redis://localhost")


def postgres() -> None:
    import asyncjobs.stores.postgres  # noqa: F401

    AsyncJobs("postgresql://localhost/app")


def depends() -> None:
    from fast_depends import Depends

    jobs = AsyncJobs(MEMORY)

    def factor() -> int:
        return 2

    def double(number: int, factor: int) -> int:
        return factor * number

    double.__annotations__["factor"] = Annotated[int, Depends(factor)]
    jobs.handler("double")(double)

    async def run() -> None:
        async with jobs:
            handle = await jobs.enqueue("double", 21)
            assert await handle.result() == 42

    anyio.run(run)


def cli() -> None:
    program = str(Path(sys.executable).with_name("asyncjobs"))
    command = [program, "list", "--store", "sqlite:///jobs.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "double" in done.stdout, done.stdout


def client() -> None:
    from asyncjobs.client import JobsClient

    JobsClient().close()


def webhooks() -> None:
    from asyncjobs.webhooks import Webhooks

    Webhooks({"receiver.example.com": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})


def otel() -> None:
    from asyncjobs.otel import instrument

    instrument(AsyncJobs(MEMORY))


def cron() -> None:
    jobs = AsyncJobs(MEMORY)

    @jobs.handler("export")
    def export() -> None: ...

    jobs.schedule("nightly", export, cron="0 3 * * *", timezone="Europe/Berlin")


def tokens() -> None:
    from asyncjobs import Tokens

    Tokens("a secret for this check, 32 bytes or more")


def objects() -> None:
    AsyncJobs(MEMORY, files="s3://bucket/files")


def celery() -> None:
    from celery import Celery

    from asyncjobs.dispatchers.celery import CeleryDispatcher

    CeleryDispatcher(Celery("app")).register_task(AsyncJobs(MEMORY))


def rq() -> None:
    from redis import Redis

    from asyncjobs.dispatchers.rq import RQDispatcher

    RQDispatcher(Redis(), "app.run_job").register_task(AsyncJobs(MEMORY))


def taskiq() -> None:
    from taskiq import InMemoryBroker

    from asyncjobs.dispatchers.taskiq import TaskiqDispatcher

    TaskiqDispatcher(InMemoryBroker()).register_task(AsyncJobs(MEMORY))


def dramatiq() -> None:
    from dramatiq.brokers.stub import StubBroker

    from asyncjobs.dispatchers.dramatiq import DramatiqDispatcher

    DramatiqDispatcher(StubBroker()).register_task(AsyncJobs(MEMORY))


def saq() -> None:
    from asyncjobs.dispatchers.saq import SAQDispatcher

    SAQDispatcher()


def procrastinate() -> None:
    from procrastinate import App, PsycopgConnector

    from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher

    app = App(connector=PsycopgConnector())
    ProcrastinateDispatcher(app).register_task(AsyncJobs(MEMORY))


#: What an extra adds, by its name.
EXTRAS: dict[str, Callable[[], None]] = {
    use.__name__: use
    for use in (
        starlette,
        fastapi,
        flask,
        redis,
        postgres,
        depends,
        cli,
        client,
        webhooks,
        otel,
        cron,
        objects,
        tokens,
        celery,
        rq,
        taskiq,
        dramatiq,
        saq,
        procrastinate,
    )
}

if __name__ == "__main__":
    core()
    for extra in sys.argv[1:]:
        EXTRAS[extra]()

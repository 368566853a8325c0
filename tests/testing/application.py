"""An application as users write it: one queue in a module, on FastAPI and on Flask."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import flask
from fast_depends import Depends
from fastapi import FastAPI

from asyncjobs import AsyncJobs, JobContext, JobFailed, Retry
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask

#: The log of the lifespan and the dependencies.
notes: list[str] = []


@asynccontextmanager
async def lifespan() -> AsyncGenerator[str]:
    notes.append("pool opened")
    yield "pool"
    notes.append("pool closed")


# No test connects to this server.
jobs = AsyncJobs("redis://localhost:1", dispatcher="worker", lifespan=lifespan)


def get_session() -> Generator[str]:
    notes.append("session opened")
    yield "session"
    notes.append("session closed")


@jobs.handler("double")
async def double(number: int) -> int:
    return 2 * number


@jobs.handler("save")
def save(
    text: str, job: JobContext[str], session: Annotated[str, Depends(get_session)]
) -> list[str]:
    return [text, job.resources, session]


@jobs.handler("each")
async def double_each(numbers: list[int]) -> None:
    for number in numbers:
        await jobs.enqueue(double, number)


@jobs.handler("each in a thread")
def double_each_in_a_thread(numbers: list[int]) -> None:
    for number in numbers:
        jobs.sync.enqueue(double, number)


@jobs.handler("wait for another")
async def wait_for_another() -> int:
    handle = await jobs.enqueue(double, 1)
    return await handle.result()


@jobs.handler("break")
def break_down() -> None:
    raise LookupError("no such thing")


@jobs.handler("refuse")
async def refuse() -> None:
    raise JobFailed("I will not", "refused")


@jobs.handler("at the third time", retry=Retry(max_attempts=3, initial_delay=60))
async def succeed_at_the_third_time(job: JobContext) -> int:
    if job.attempt < 3:
        raise ConnectionError(f"away in attempt {job.attempt}")
    return job.attempt


@jobs.handler("hang", timeout=0.05)
async def hang() -> None:
    await anyio.sleep_forever()


app = FastAPI()
on_fastapi.mount(app, jobs)


@app.post("/doubles", status_code=202)
async def create_double(number: int, accept: on_fastapi.Accept) -> object:
    return await accept(double, number)


@app.post("/doubles-of-def", status_code=202)
def create_double_in_a_thread(number: int) -> str:
    return jobs.sync.enqueue(double, number).id


flask_app = flask.Flask(__name__)
on_flask.mount(flask_app, jobs)


@flask_app.post("/doubles/<int:number>")
def create_double_on_flask(number: int) -> flask.Response:
    return on_flask.accept(double, number)

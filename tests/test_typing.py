"""Type checkers infer handler, handle and result types, and report each wrong use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = """
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, assert_type

import flask
from fast_depends import Depends
from starlette.requests import Request
from starlette.responses import Response

from asyncjobs import (
    AsyncJobs, Batch, BatchHandle, EnqueueOptions, Handler, Job, JobContext, JobHandle, JobQueue,
    OutputItem, Policy, Retry, Settings, handler,
)
from asyncjobs.adapters import flask as on_flask, starlette as on_starlette
from asyncjobs.adapters.fastapi import Accept

@dataclass
class Order:
    amount: int

minute = timedelta(minutes=1)
retry = Retry(initial_delay=1, max_delay=minute)
policy = Policy(timeout=60, deadline=minute, retention=None, retry=retry)
jobs = AsyncJobs("memory://", policy=policy, settings=Settings(grace=3, lease=minute))

@jobs.handler("order", timeout=300, estimate=minute, inline_wait=0.2, retry=retry)
async def order(given: Order, job: JobContext) -> list[str]:
    async for _ in job.track([1, 2]):
        await job.progress(90, "packing")
    return []

@jobs.handler("shared")
async def shared(given: Order, job: JobContext[Order]) -> int:
    assert_type(job.resources, Order)
    return job.resources.amount

@jobs.handler("count", timeout=None)
def count(given: str, job: JobContext) -> int:
    for letter in job.track(given):
        assert_type(letter, str)
    return len(given)

kind = jobs.external("render", payload=Order, result=int)

def get_name() -> str:
    return "a name"

Name = Annotated[str, Depends(get_name)]

@jobs.handler("nothing")
async def nothing() -> int:
    return 1

@handler("payload", policy=policy, aliases=("old",))
def payload(given: Order) -> int:
    return 1

@handler("job")
def job_alone(job: JobContext) -> int:
    return 1

@handler("job by name")
async def job_by_name(*, job: JobContext, name: Name) -> int:
    return 1

@handler("both by name")
async def both_by_name(given: Order, *, job: JobContext) -> int:
    return 1

@jobs.handler("all")
async def all_three(given: Order, job: JobContext, name: Name) -> int:
    return 1

@jobs.handler("payload and name")
def payload_and_name(given: Order, name: Name) -> int:
    return 1

@jobs.handler("job and name")
def job_and_name(job: JobContext, name: Name) -> int:
    return 1

@jobs.handler("tokens")
async def tokens(given: Order, job: JobContext) -> AsyncIterator[str]:
    await job.emit("a")
    await job.stream("log", kind="text").emit("b")
    yield "c"

@jobs.handler("lines", emit_every=0.02)
def lines() -> Iterator[bytes]:
    yield b"a"

@jobs.handler("weights", output=float)
def weights(job: JobContext) -> None:
    job.emit(1.5)

class Service:
    async def method(self, given: Order, job: JobContext) -> int:
        return 1

    def __call__(self, job: JobContext) -> int:
        return 1

def scaled(factor: int, given: Order) -> int:
    return 1

method = jobs.handler("method")(Service().method)
called = jobs.handler("called")(Service())
part = jobs.handler("part")(partial(scaled, 3))
jobs.include(payload, [job_alone, job_by_name])

async def submit() -> None:
    for without in (nothing, job_alone, job_by_name, job_and_name, called):
        assert_type(without, Handler[None, int])
    assert_type(tokens, Handler[Order, Any])
    assert_type(lines, Handler[None, Any])
    assert_type(weights, Handler[None, None])
    for one in (payload, both_by_name, all_three, payload_and_name, method):
        assert_type(one, Handler[Order, int])
    assert_type(await jobs.enqueue(nothing), JobHandle[int])
    assert_type(await jobs.enqueue(nothing, None, user_id="ann"), JobHandle[int])
    assert_type(await jobs.enqueue(all_three, Order(1)), JobHandle[int])
    assert_type(await jobs.enqueue(part, Order(1)), JobHandle[int])
    assert_type(await jobs.enqueue("nothing"), JobHandle[Any])

async def use(job: Job, queue: JobQueue) -> None:
    assert_type(order, Handler[Order, list[str]])
    assert_type(shared, Handler[Order, int])
    assert_type(jobs.sync.enqueue(shared, Order(1)).result(), int)
    assert_type(jobs.sync.wait(job.id), Job)
    async with jobs.open(run_handlers=False) as opened:
        assert_type(opened, AsyncJobs)
    handle = await jobs.enqueue(order, Order(1), options=EnqueueOptions(run_at=60, deadline=minute))
    assert_type(handle, JobHandle[list[str]])
    assert_type(await handle.result(), list[str])
    assert_type(await handle.wait(timeout=minute), Job)
    assert_type(await handle.cancel(), Job)
    async for state in handle:
        assert_type(state, Job)
    async for item in handle.output(after=3):
        assert_type(item, OutputItem)
    for item in jobs.sync.output(job.id, "log"):
        assert_type(item, OutputItem)
    assert_type(order.result_of(job), list[str])
    assert_type(count.result_of(job), int)
    assert_type(kind.result_of(job), int)
    assert_type(await (await jobs.enqueue(count, "text")).result(timeout=3), int)
    assert_type(await (await jobs.enqueue(kind, Order(1))).result(), int)
    assert_type(await jobs.enqueue("order", {"amount": 1}), JobHandle[Any])
    assert_type(await queue.enqueue(order, Order(1)), JobHandle[Any])
    assert_type(await jobs.retry(job.id), JobHandle[Any])
    assert_type(await jobs.find(job.id, user_id=None), Job)
    assert_type(await jobs.batch(job.id, user_id="ann"), BatchHandle)

async def answer(accept: Accept, request: Request, job: Job) -> None:
    batch = await jobs.batch(job.id)
    assert_type(await accept(await jobs.retry(job.id)), Response)
    assert_type(await accept(await batch.retry_failed()), Response)
    assert_type(await accept(order, Order(1), user_id="ann"), Response)
    assert_type(await accept(order, Batch([Order(1)])), Response)
    assert_type(await accept("order", {}), Response)
    assert_type(await on_starlette.accept(request, batch), Response)
    assert_type(await on_starlette.accept(request, order, Order(1)), Response)
    assert_type(on_flask.accept(jobs.sync.batch(job.id).retry_failed()), flask.Response)
    assert_type(on_flask.accept(jobs.sync.enqueue(nothing)), flask.Response)
"""

BAD = """
    await accept(batch, Order(1))
    await accept(batch, user_id="ann")
    await accept(job)
    await accept(order, "text")
    await on_starlette.accept(request, batch, Order(1))
    on_flask.accept(batch, options=EnqueueOptions())
    await jobs.enqueue(order, "text")
    await jobs.enqueue(count, 3)
    await jobs.enqueue(kind, 3)
    await jobs.enqueue(order)
    await jobs.enqueue(nothing, 3)
    await jobs.enqueue(payload)
    await jobs.enqueue(both_by_name, "text")
    jobs.include(get_name)
    jobs.handler(answer)
    Settings(grace="3")
    Policy(timeouts=3)
    (await (await jobs.enqueue(order, Order(1))).result()).bit_length()
"""


def mypy(file: Path) -> set[int]:
    """Return the lines that have an error."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--output=json"]
    run = subprocess.run([*command, str(file)], check=False, capture_output=True, text=True)
    assert run.returncode in {0, 1}, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return {one["line"] for one in found if one["severity"] == "error"}


def pyright(file: Path) -> set[int]:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run([*command, str(file)], check=False, capture_output=True, text=True)
    assert run.returncode in {0, 1}, run.stderr
    found = json.loads(run.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


Check = Callable[[Path], set[int]]


@pytest.fixture(params=[mypy, pyright], ids=lambda check: str(check.__name__))
def check(request: pytest.FixtureRequest) -> Check:
    if request.param is pyright:
        pytest.importorskip("pyright", reason="comes with the tools, not with the tests")
    chosen: Check = request.param
    return chosen


def test_correct_uses_have_exact_types_and_no_errors(check: Check, tmp_path: Path) -> None:
    file = tmp_path / "use.py"
    file.write_text(GOOD)
    assert check(file) == set()


def test_each_wrong_use_is_a_type_error(check: Check, tmp_path: Path) -> None:
    file = tmp_path / "use.py"
    file.write_text(GOOD + BAD.removeprefix("\n"))
    first = GOOD.count("\n") + 1
    assert check(file) == set(range(first, first + BAD.strip().count("\n") + 1))

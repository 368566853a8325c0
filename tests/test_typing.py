"""`enqueue` and `accept` are checked against the handler by both type checkers' rules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GOOD = """
from dataclasses import dataclass
from typing import assert_type

from asyncjobs import AsyncJobs, Handler, Job, JobContext

@dataclass
class Order:
    amount: int

jobs = AsyncJobs("memory://")

@jobs.handler("order", timeout=300, estimate=30)
async def order(given: Order, job: JobContext) -> list[str]:
    async for _ in job.track([1, 2]):
        await job.progress(90, "packing")
    return []

@jobs.handler("count")
def count(given: str, job: JobContext) -> int:
    for letter in job.track(given):
        assert_type(letter, str)
    return len(given)

kind = jobs.external("render", payload=Order, result=int)

async def use(job: Job) -> None:
    assert_type(order, Handler[Order, list[str]])
    assert_type(await jobs.enqueue(order, Order(1)), Job)
    assert_type(order.result_of(job), list[str])
    assert_type(count.result_of(job), int)
    assert_type(kind.result_of(job), int)
    await jobs.enqueue("order", {"amount": 1})
    await jobs.enqueue(count, "text")
    await jobs.enqueue(kind, Order(1))
"""

BAD = """
    await jobs.enqueue(order, "text")
    await jobs.enqueue(count, 3)
    await jobs.enqueue(kind, 3)
    await jobs.enqueue(order)
"""


def mypy(folder: Path, text: str) -> str:
    file = folder / "use.py"
    file.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(file)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def test_a_right_use_passes_and_its_types_are_exact(tmp_path: Path) -> None:
    assert "Success" in mypy(tmp_path, GOOD)


def test_each_wrong_use_is_an_error(tmp_path: Path) -> None:
    lines = re.findall(r"use.py:(\d+): error", mypy(tmp_path, GOOD + BAD.removeprefix("\n")))
    first = GOOD.count("\n") + 1
    assert set(map(int, lines)) == set(range(first, first + 4))

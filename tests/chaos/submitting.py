"""A program that submits a batch, and is killed while it does."""

from __future__ import annotations

import sys

import anyio

from tests.chaos import application
from tests.chaos.application import Errand


async def submit(key: str, many: int) -> None:
    async with application.counting_jobs() as jobs:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await jobs.enqueue_batch("errand", [Errand()] * many, idempotency_key=key)


if __name__ == "__main__":
    anyio.run(submit, sys.argv[1], int(sys.argv[2]))

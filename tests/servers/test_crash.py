"""`kill -9` at any moment loses no accepted job and changes no final state."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.every_store(without="memory")

FINAL = ("status", "result", "error", "completedAt", "attempt", "etag")


class Customers:
    """Clients that submit and follow jobs while the server answers, and record everything."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.promised: list[str] = []
        self.seen: dict[str, dict[str, Any]] = {}
        self.broken: list[str] = []

    def visit(self, seconds: float) -> None:
        """Let several arrive at once, until the server is killed."""
        threads = [threading.Thread(target=self._one, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)  # not a wait: the crash comes at a random moment
        self.server.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()

    def look(self, url: str) -> bool:
        """Read a job; return whether it is terminal, and record violations."""
        # Another client's answer in the meantime may be newer than this one.
        ended = self.seen.get(url)
        job = self.server.job(url)
        final = {name: job[name] for name in FINAL}
        if ended not in (None, final):
            self.broken.append(f"{url}: {ended} became {final}")
        if job["status"] in {"completed", "failed"}:
            self.seen[url] = final
        return url in self.seen

    def _one(self, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # no secret
        try:
            while True:
                name, seconds = chance.choice(["nap", "doze"]), chance.choice([0, 0, 0.05, 0.3])
                self.promised.append(self.server.submit(name, seconds=seconds))
                self.look(chance.choice(self.promised))
        except httpx2.TransportError:
            return


def test_every_accepted_job_ends_and_no_final_state_changes(uvicorn: Any) -> None:
    customers = Customers(uvicorn)
    moments = random.Random(1)  # noqa: S311  # no secret
    for _ in range(4):
        customers.visit(moments.uniform(0.05, 0.7))
        uvicorn.start()
    assert len(customers.promised) > 50
    for url in customers.promised:
        uvicorn.eventually(lambda url=url: customers.look(url))
    for url in customers.promised:
        customers.look(url)
    assert customers.broken == []
    ends = [final["status"] for final in customers.seen.values()]
    assert ends.count("completed") > len(ends) * 0.9

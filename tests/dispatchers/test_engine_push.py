"""Jobs are pushed to an engine's asyncio client a few at a time; an error affects no others."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from asyncjobs import Job
from asyncjobs.dispatchers.engines.push import AsyncClientDispatcher, Message
from asyncjobs.errors import NotDispatched, NotOpen
from asyncjobs.testing import sample_job

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

IMPORT_WITHOUT_ENGINE = """
import sys
sys.modules[{name!r}] = None
try:
    import asyncjobs.dispatchers.{name}
except ImportError as error:
    print(error)
"""


@dataclass(frozen=True)
class Named:
    """The options of an engine."""

    queue: str | None


class SlowEngine(AsyncClientDispatcher[Named]):
    """Takes some time for each message, and refuses jobs of the type "refused"."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ids: list[str] = []
        self.most_at_once = 0
        self._at_once = 0

    async def connect(self) -> None: ...

    def leave_to_parent(self) -> None: ...

    async def send(self, message: Message, job: Job) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await anyio.lowlevel.checkpoint()
        self._at_once -= 1
        if job.type == "refused":
            raise ConnectionRefusedError(job.id)
        self.ids.append(message["id"])


async def test_a_few_jobs_are_sent_at_once_and_in_their_order() -> None:
    jobs = [sample_job() for _ in range(100)]
    async with SlowEngine() as engine:
        await engine.dispatch(jobs)
    assert engine.ids == [job.id for job in jobs]
    assert engine.most_at_once == engine.max_concurrent_sends


async def test_a_refused_job_does_not_affect_others() -> None:
    jobs = [sample_job(type="refused" if number % 3 == 0 else "taken") for number in range(30)]
    async with SlowEngine() as engine:
        with pytest.raises(NotDispatched, match=jobs[0].id) as caught:
            await engine.dispatch(jobs)
    assert caught.value.refused == {job.id for job in jobs if job.type == "refused"}
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert engine.ids == [job.id for job in jobs if job.type == "taken"]


async def test_the_queue_of_the_options_overrides_that_of_the_policy() -> None:
    engine = SlowEngine(options={"optional": Named("options"), "plain": Named(None)})
    assert engine.queue_for("other", "default") is None
    assert engine.queue_for("other", "policy") == "policy"
    assert engine.queue_for("optional", "policy") == "options"
    assert engine.queue_for("plain", "policy") == "policy"
    assert "serves the queue policy" in engine.how_to_serve("other", "policy")
    assert "or start more" in engine.how_to_serve("other", "default")
    assert engine.served_queues() is None


async def test_an_empty_batch_sends_nothing() -> None:
    async with SlowEngine() as engine:
        await engine.dispatch([])
    assert engine.ids == []


async def test_dispatch_before_open_raises_not_open() -> None:
    with pytest.raises(NotOpen):
        await SlowEngine().dispatch([sample_job()])


@pytest.mark.parametrize("name", ["celery", "dramatiq", "procrastinate", "rq", "saq", "taskiq"])
async def test_a_missing_engine_is_named_with_its_extra(name: str) -> None:
    """Run in another process: this one has already imported the engines."""
    command = [sys.executable, "-c", IMPORT_WITHOUT_ENGINE.format(name=name)]
    done = await anyio.run_process(command)
    assert done.stdout.decode().strip() == (
        f"asyncjobs.dispatchers.{name} needs the package {name}: "
        f"pip install 'asyncjobs-http[{name}]'."
    )

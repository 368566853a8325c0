"""Alerts fire at the first event of a process; promtool evaluates the rules.

The samples are scrapes of a real queue, from before and after an event of a job.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, Settings
from asyncjobs.otel import instrument
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, ManualClock
from tests.waiting import until

RULES = Path(__file__).parents[2] / "docs" / "prometheus-alerts.yml"

# Scrapes, one a minute, before and after the event.
BEFORE, AFTER = 6, 9

Scrape = Mapping[str, float]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool of Prometheus"),
]


def scrape() -> Scrape:
    """Return the current samples by series, in Prometheus' notation."""
    found: dict[str, float] = {}
    for sample in (one for family in REGISTRY.collect() for one in family.samples):
        if sample.name.startswith(("asyncjobs_", "messaging_")):
            labels = ",".join(f"{name}={json.dumps(it)}" for name, it in sample.labels.items())
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


@dataclass
class Observed:
    """A queue whose metrics are scraped; the test moves its clock."""

    jobs: AsyncJobs
    store: MemoryStore
    clock: ManualClock


def with_handlers(jobs: AsyncJobs) -> AsyncJobs:
    @jobs.handler("export")
    async def export(_none: None, _job: JobContext) -> None: ...

    @jobs.handler("fail")
    async def fail(_none: None, _job: JobContext) -> None:
        raise ValueError

    @jobs.handler("stay", timeout=None)
    async def stay(_none: None, job: JobContext) -> None:
        job.progress(1)
        await anyio.sleep_forever()

    return jobs


@asynccontextmanager
async def observed(*, run_handlers: bool) -> AsyncGenerator[Observed]:
    meters = MeterProvider([PrometheusMetricReader()])
    store, clock = MemoryStore(), ManualClock()
    settings = Settings(sweep_interval=0.05, poll_interval=0.05, grace=0)
    jobs = with_handlers(AsyncJobs(store, clock=clock, settings=settings))
    instrument(jobs, meter_provider=meters)
    try:
        async with jobs.open(run_handlers=run_handlers):
            await until(lambda: "asyncjobs_queue_oldest_age_seconds" in str(scrape()))
            yield Observed(jobs, store, clock)
    finally:
        meters.shutdown()


def total(name: str) -> float:
    return sum(value for series, value in scrape().items() if series.startswith(name))


async def complete(queue: Observed) -> None:
    await (await queue.jobs.enqueue("export", None)).wait()


async def fail(queue: Observed) -> None:
    await (await queue.jobs.enqueue("fail", None)).wait()


async def miss_a_deadline(queue: Observed) -> None:
    job = await queue.jobs.enqueue("stay", None, options=EnqueueOptions(deadline=60))
    await until(lambda: total("asyncjobs_jobs_running") == 1)
    queue.clock.advance(timedelta(minutes=2))
    await job.wait()


async def lose_a_worker(queue: Observed) -> None:
    store = FaultyStore(queue.store)
    lost = with_handlers(AsyncJobs(store, clock=queue.clock))
    async with lost:
        job = await lost.enqueue("stay", None)
        await until(lambda: lost.running)
        store.faults = Faults(before=1)  # it can neither renew its lease nor notice the loss
        queue.clock.advance(timedelta(minutes=1))
        await queue.jobs.find(job.id)
        await until(lambda: total("asyncjobs_workers_lost_total") == 1)
        store.faults = Faults()


async def wait_long(queue: Observed) -> None:
    await queue.jobs.enqueue("stay", None)
    queue.clock.advance(timedelta(minutes=6))
    await until(lambda: total("asyncjobs_queue_oldest_age_seconds") == 360)


EVENTS: list[tuple[Callable[[Observed], Awaitable[None]], bool, set[str]]] = [
    (complete, True, set()),
    (fail, True, {"JobsFail"}),
    (miss_a_deadline, True, {"JobDeadlinesMissed", "JobsFail"}),
    (lose_a_worker, True, {"JobWorkersLost"}),
    (wait_long, False, {"JobsWaitTooLong"}),
]


@pytest.mark.parametrize(("happens", "run_handlers", "alerts"), EVENTS)
async def test_an_alert_fires_at_its_first_event(
    happens: Callable[[Observed], Awaitable[None]],
    run_handlers: bool,
    alerts: set[str],
    tmp_path: Path,
) -> None:
    async with observed(run_handlers=run_handlers) as queue:
        before = scrape()
        await happens(queue)
        # An event is counted a moment after the job has ended.
        await anyio.wait_all_tasks_blocked()
        after = scrape()
    check(tmp_path, [before] * BEFORE + [after] * AFTER, alerts)


async def test_an_alert_fires_if_there_are_no_metrics(tmp_path: Path) -> None:
    nothing: Scrape = {}
    check(tmp_path, [nothing] * (BEFORE + AFTER), {"JobMetricsMissing"})


def check(tmp_path: Path, scrapes: Sequence[Scrape], alerts: set[str]) -> None:
    """Let promtool read the scrapes and compare the alerts that fire at the last one."""
    series = {name for found in scrapes for name in found}
    values = {name: " ".join(str(found.get(name, "_")) for found in scrapes) for name in series}
    test = {
        "rule_files": [str(RULES)],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": it} for name, it in values.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"} > 0)',
                        "eval_time": f"{len(scrapes) - 1}m",
                        "exp_samples": [
                            {"labels": f'{{alertname="{name}"}}', "value": 1} for name in alerts
                        ],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(test))  # JSON is YAML
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)],  # noqa: S607  # installed on the path
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

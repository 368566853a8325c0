"""Dashboard, operating guide and reference name every existing metric, and no others."""

import json
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

from asyncjobs import AsyncJobs, JobContext, Policy
from asyncjobs.otel import instrument, names
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import ManualClock
from tests.waiting import until

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = DOCS.parent / "asyncjobs"
OURS = re.compile(r"\b(?:asyncjobs|messaging)_[a-z_]+\b")
METRIC = re.compile(r"(?:_total|_bucket|_sum|_count)$")
LABEL = re.compile(r"(?:by|on) \(([^)]*)\)|\{([^}]*)\}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def series() -> dict[str, set[str]]:
    """Return the labels of every series that Prometheus reads, after each kind of event."""
    meters = MeterProvider([PrometheusMetricReader()])
    clock, store = ManualClock(), MemoryStore()
    jobs = AsyncJobs(store, clock=clock)
    instrument(jobs, meter_provider=meters)

    @jobs.handler("fails")
    async def fails(_payload: None, _job: JobContext) -> None:
        raise ValueError

    @jobs.handler("lost", policy=Policy(max_deliveries=1))
    async def lost(_payload: None, job: JobContext) -> None:
        clock.advance(timedelta(minutes=5))
        await jobs.find(job.id)

    gauges = {"asyncjobs_queue_oldest_age_seconds", "asyncjobs_watchers"}
    found: dict[str, set[str]] = {}

    def collect() -> None:
        for family in REGISTRY.collect():
            for sample in family.samples:
                if OURS.match(sample.name):
                    found[sample.name] = set(sample.labels)

    def gauges_are_exported() -> bool:
        collect()
        return gauges <= found.keys()

    async with jobs:
        for kind in (fails, lost):
            await jobs.wait((await jobs.enqueue(kind, None)).id)
        await until(gauges_are_exported)
    # Gauges exist while the queue is open; all events are counted when it is closed.
    collect()
    meters.shutdown()
    return found


def expressions_of_the_dashboard() -> list[str]:
    text = (DOCS / "grafana-dashboard.json").read_text(encoding="utf-8")
    panels: list[dict[str, Any]] = json.loads(text)["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def expressions_of_the_guide() -> list[str]:
    page = (DOCS / "howto" / "monitoring.md").read_text(encoding="utf-8")
    return re.findall(r"```promql\n(.*?)```", page, re.DOTALL)


def labels_in(expression: str) -> set[str]:
    """Return the labels by which an expression groups and selects."""
    found: set[str] = set()
    for grouped, selected in LABEL.findall(expression):
        found |= {label.strip() for label in grouped.split(",") if label.strip()}
        found |= set(re.findall(r"(\w+)=", selected))
    return found


def metrics_in(expressions: Iterable[str]) -> set[str]:
    """Return the series that expressions query."""
    without_labels = (LABEL.sub("", expression) for expression in expressions)
    return {name for one in without_labels for name in OURS.findall(one)}


@pytest.mark.parametrize(
    "expressions", [expressions_of_the_dashboard, expressions_of_the_guide], ids=["board", "guide"]
)
async def test_every_metric_is_queried_and_every_queried_metric_exists(
    series: dict[str, set[str]], expressions: Callable[[], list[str]]
) -> None:
    asked = metrics_in(expressions())
    assert asked <= set(series)
    assert {METRIC.sub("", name) for name in asked} == {METRIC.sub("", name) for name in series}


@pytest.mark.parametrize(
    "expressions", [expressions_of_the_dashboard, expressions_of_the_guide], ids=["board", "guide"]
)
async def test_every_queried_label_exists_on_its_metric(
    series: dict[str, set[str]], expressions: Callable[[], list[str]]
) -> None:
    for expression in expressions():
        for part in re.split(r"\n\s+[/>]|\n(?=sum)", expression):
            had = set[str]().union(*(series[name] for name in metrics_in([part])))
            assert labels_in(part) <= had, part


def test_the_guide_shows_the_expressions_of_all_alerts() -> None:
    text = " ".join((DOCS / "prometheus-alerts.yml").read_text(encoding="utf-8").split())
    shown = [" ".join(expression.split()) for expression in expressions_of_the_guide()]
    assert sum(f"expr: {one}" in text or f"expr: | {one}" in text for one in shown) == 5
    assert text.count("expr: ") == 5


async def test_the_reference_names_all_metrics_and_no_others() -> None:
    page = (DOCS / "howto" / "opentelemetry.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `((?:messaging|asyncjobs)\.[a-z.]+)` \|.*\|.*\|$", page, re.MULTILINE)
    assert set(table) == {
        names.SENT,
        names.CONSUMED,
        names.PROCESSING,
        names.WAIT,
        names.RUNNING,
        names.ENDED,
        names.LOST,
        names.OLDEST,
        names.WATCHERS,
    }


def test_the_guide_quotes_log_messages_exactly() -> None:
    page = (DOCS / "howto" / "monitoring.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    quoted = re.findall(r"^\| `([A-Z][^`]*)` in the logs", page, re.MULTILINE)
    assert len(quoted) == 5
    for sentence in quoted:
        for part in sentence.split("…"):
            assert part.strip() in code, sentence
